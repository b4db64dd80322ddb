"""Prints without end."""

# ruff: noqa

# %% output flood
while True:
    print("x" * 4096)

# %% error flood
while True:
    sys.stderr.write("x" * 4096)

# %% flood in one call
os.write(1, bytes(400 << 20)) and time.sleep(60)
