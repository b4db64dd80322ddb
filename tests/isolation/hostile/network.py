"""Talks to anybody."""

# ruff: noqa

# %% TCP
socket.create_connection(("127.0.0.1", PORT), 1)
print("ESCAPED")

# %% TCP server
socket.create_server(("127.0.0.1", 0))
print("ESCAPED")

# %% UDP
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT))
print("ESCAPED")

# %% IPv6
socket.socket(socket.AF_INET6)
print("ESCAPED")

# %% abstract socket
socket.socket(socket.AF_UNIX).connect("\0" + str(PORT))
print("ESCAPED")

# %% abstract socket from a pair
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
a.sendto(b"x", "\0" + str(PORT))
print("ESCAPED")

# %% netlink
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
print("ESCAPED")

# %% raw packets
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
print("ESCAPED")

# %% vsock and crypto sockets
each(socket.socket, (40, 38))

# %% names
socket.getaddrinfo("localhost", 80, socket.AF_INET) and socket.gethostbyname("example.org")
print("ESCAPED")

# %% bind the stream pair
a, b = socket.socketpair()
a.bind("\0abacus-escape")
print("ESCAPED")
