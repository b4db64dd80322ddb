"""Programs and questions that are answered by another machine: calls over HTTP that survive what networks do.

    with Caller("http://host:8000", "/v1/chat/completions", flag="--url") as caller:
        reply = caller.call({"model": "m", "messages": [...]}, read)
    with RemoteSandbox("http://host:8080") as sandbox:         # a SandboxFusion server
        print(sandbox.run("print(1 + 1)").stdout)

`Caller` posts JSON and tries again, after a pause that doubles, whenever a second try may help: an answer
408, 429 or 5xx, a time-out, a connection that is refused or drops, be it in mid-answer, and an answer that is
no JSON or not what was asked for. What the server refuses for good (400, 401, 404 and the like) is one line
with the server's own words. `RemoteSandbox` has the face of `sandbox.Sandbox`, so that a rollout does not
know where its programs run. Standard library only.
"""

import contextlib
import email.utils
import http.client
import json
import math
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TypeVar

from plumbing.config import UsageError

AGAIN = (408, 425, 429)  # statuses below 500 after which another try may help


CONNECT = 10.0  # seconds for a connection to be made


FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds of back-off


LONGEST_WISH = 600.0  # seconds in a Retry-After beyond which waiting is no use


LARGEST = 64 << 20  # bytes of an answer


T = TypeVar("T")


class CallError(UsageError):
    """A call that got no usable answer: refused for good (`status` below 500), or tried as often as allowed
    (`status` of the last answer, None where there was none)."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Unusable(Exception):
    """An answer that is not what was asked for; it may be the next time."""


class _Refused(Exception):
    """An HTTP status other than 200, with what the server said, and the pause it asks for."""

    def __init__(self, status: int, said: str, pause: float | None):
        super().__init__(f"{status} {http.client.responses.get(status, '')}".strip() + f": {said}")
        self.status, self.pause = status, pause


class Caller:
    """Posts JSON to one address; thread-safe. Counts `calls` that were answered, `failed` ones, and
    `retried`: tries beyond a call's first. `lock` guards the counts."""

    def __init__(
        self,
        url: str,  # http:// or https://, host, perhaps port and path; what is not there is not guessed
        path: str = "",  # appended to the url's
        *,
        flag: str,  # the option that the url came from, for messages
        headers: Mapping[str, str] | None = None,
        secret: str = "",  # blotted out wherever a server repeats it
        timeout: float = 60.0,  # seconds for one try, from connecting to the answer's last byte
        retries: int = 5,  # tries after the first
        sleep: Callable[[float], None] | None = None,  # for tests; by default a sleep that close() ends
        rng: random.Random | None = None,  # of the back-off's jitter
    ):
        self.url, self.flag = url.rstrip("/"), flag
        parts = split_url(self.url, flag)
        self._address = parts.scheme, parts.hostname, parts.port
        self._path = parts.path + path
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        self._secret, self.timeout, self.retries = secret, timeout, retries
        self._closed = threading.Event()
        self._sleep, self._rng = sleep or self._closed.wait, rng or random.Random()
        self.lock, self._open = threading.Lock(), set()  # sockets in use, for close()
        self.calls = self.retried = self.failed = 0

    def call(self, body: dict, read: Callable[[object], T], timeout: float | None = None) -> T:
        """What `read` makes of the server's answer, as JSON, to `body`. `read` raises Unusable for one that
        should be asked for again. Raises CallError."""
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            with self.lock:
                self.retried += attempt > 0
            try:
                answer = read(self._post(data, self.timeout if timeout is None else timeout))
            except _Refused as error:
                wish = error.pause
                final = (error.status < 500 and error.status not in AGAIN) or (wish or 0) > LONGEST_WISH
                problem, status = error, error.status
            except ssl.SSLCertVerificationError as error:
                final, problem, status = True, error, None
            except (OSError, http.client.HTTPException, Unusable) as error:
                wish, final, problem, status = None, False, error, None
            else:
                with self.lock:
                    self.calls += 1
                return answer
            if final or attempt == self.retries or self._closed.is_set():
                break
            self._sleep(self._pause(attempt) if wish is None else wish)
        with self.lock:
            self.failed += 1
        raise CallError(self._explain(problem, attempt + 1), status)

    def close(self) -> None:
        """End every call in progress; they, and all later ones, fail."""
        self._closed.set()
        with self.lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(
                        sock, socket.SHUT_RDWR
                    )  # not an SSLSocket's, which pulls its reader's rug

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _pause(self, attempt: int) -> float:
        """Seconds before the next try: 1, 2, 4, ... up to 60, less up to half, so that many do not come back
        at once."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * self._rng.uniform(0.5, 1.0)

    def _explain(self, error: Exception, tries: int) -> str:
        if self._closed.is_set():
            return f"{self.flag} {self.url}: the call was given up"
        kind = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        times = f" ({tries} tries)" if tries > 1 else ""
        return (
            f"{self.flag} {self.url}: {self._blot(kind)[:400]}{times}"  # blotted first: half a key is a key
        )

    def _blot(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text

    def _post(self, data: bytes, timeout: float) -> object:
        """One try: the answer's JSON. Raises _Refused, Unusable, OSError, HTTPException."""
        if self._closed.is_set():
            raise OSError("closed")
        deadline = time.monotonic() + timeout
        scheme, host, port = self._address
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection = kind(host, port, timeout=min(CONNECT, timeout))
        try:
            connection.connect()
            with self._watched(connection.sock) as sock:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                connection.request("POST", self._path, data, {**self._headers, "Connection": "close"})
                response = connection.getresponse()
                text = _read(response, sock, deadline)
        finally:
            connection.close()
        if response.status != 200:
            raise _Refused(response.status, _said(text), _retry_after(response.headers.get("Retry-After")))
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            kind = response.headers.get("Content-Type", "no content type")
            raise Unusable(f"the answer is no JSON ({kind}): {_said(text)!r}") from None

    @contextlib.contextmanager
    def _watched(self, sock: socket.socket):
        with self.lock:
            self._open.add(sock)
        try:
            if self._closed.is_set():
                raise OSError("closed")
            yield sock
        finally:
            with self.lock:
                self._open.discard(sock)


def split_url(url: str, flag: str) -> urllib.parse.SplitResult:
    """The parts of a server's address. Raises UsageError; the message shows no user name or password."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname.encode("idna") and parts.port != 0
    except (ValueError, AttributeError):  # a port or host that cannot be; no host
        parts, good = None, False
    if parts and "@" in parts.netloc:
        raise UsageError(f"{flag}: the address holds a user name or password; expected one without")
    if not good or parts.query or parts.fragment or re.search(r"[^!-~]", url):
        raise UsageError(f"{flag} {url}: expected an address like http://localhost:8000/v1")
    return parts


def _read(response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    """The whole answer, however slowly it drips, up to the deadline. Raises TimeoutError, IncompleteRead."""
    parts, size = [], 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        if not (part := response.read1(1 << 16)):
            break
        parts.append(part)
        if (size := size + len(part)) > LARGEST:
            raise Unusable(f"an answer of more than {LARGEST >> 20} MiB")
    if response.length:  # as announced, and not come
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _said(text: bytes) -> str:
    """What a server says went wrong, in one line."""
    found = text.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(found)
        for name in ("error", "message", "detail"):  # OpenAI nests the second in the first; FastAPI: the last
            if isinstance(value, dict) and value.get(name):
                value = value[name]
        found = value if isinstance(value, str) else json.dumps(value)
    return " ".join(found.split()) or "(no message)"


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header: a number or a date (RFC 9110, 10.2.3); None where there is
    none that says anything."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text) if math.isfinite(float(text)) and float(text) >= 0 else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
