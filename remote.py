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
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from config import UsageError
from sandbox import Failures, Result, SandboxError, failure, seconds

AGAIN = (408, 425, 429)  # statuses below 500 after which another try may help
CONNECT = 10.0  # seconds for a connection to be made
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds of back-off
LONGEST_WISH = 600.0  # seconds in a Retry-After beyond which waiting is no use
LARGEST = 64 << 20  # bytes of an answer
QUEUE = 60.0  # seconds that a program may wait in its server's queue, beyond its own time


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


# -- a sandbox on another machine ------------------------------------------------------------------

FILE = re.compile(r'File "/tmp/tmp\w+/tmp\w+\.py"')  # what SandboxFusion names a program, anew each time


class RemoteSandbox:
    """Runs programs on a SandboxFusion server (github.com/bytedance/SandboxFusion, POST /run_code): Sandbox's
    public face, with the isolation that the server has, which nobody here can check.

    A program that could not be run after `retries` more tries is a `sandbox_error`. Of a Result, cpu and
    max_rss_mb are nan: the server does not say. Raises UsageError where it does not run a program now.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,  # seconds, the start of Python included
        output_kb: int = 64,  # kept of each stream
        workers: int = 32,  # programs sent at once; the server has a queue
        retries: int = 3,
        max_failed_share: float = 0.01,
        quiet: bool = False,  # no line on stderr
        sleep: Callable[[float], None] | None = None,
    ):
        self.timeout, self.keep, self.url = seconds(timeout), output_kb << 10, url.rstrip("/")
        self._caller = Caller(self.url, "/run_code", flag="--sandbox-url", retries=retries, sleep=sleep)
        self._failures = Failures(max_failed_share)
        self._lock, self._broken, self._closed = threading.Lock(), "", False
        self.layers = {"remote": self.url}
        try:
            answer = self._caller.call(self._job("print(6 * 7)", self.timeout), self._read)
            if answer.stdout != "42\n":
                raise UsageError(f"--sandbox-url {url}: print(6 * 7) ended as {answer}; is it SandboxFusion?")
        except BaseException:
            self._caller.close()
            raise
        self._caller.calls = self._caller.retried = 0  # of programs that count
        self._pool, self._quiet = ThreadPoolExecutor(workers, "remote sandbox"), quiet
        if not quiet:
            print(self, file=sys.stderr)

    @property
    def level(self) -> str:
        return f"remote {self.url}"

    @property
    def failed(self) -> int:
        """Programs among the recent ones that could not be run."""
        return self._failures.count

    def __str__(self) -> str:
        return f"sandbox: {self.level}; how programs are confined there is the server's affair"

    def submit(self, code: str, timeout: float | None = None) -> Future[Result]:
        """Send a program; returns at once. `timeout` (seconds) is the program's own, waiting not included.
        Raises SandboxError after `close`, and when too many of the last programs could not be run."""
        if not isinstance(code, str):
            raise ValueError(f"expected a program, a str, found {code!r}")
        timeout = seconds(self.timeout if timeout is None else timeout)
        with self._lock:
            if self._closed or self._broken:
                raise SandboxError(self._broken or "the sandbox is closed")
            return self._pool.submit(self._run, code, timeout)

    def run(self, code: str, timeout: float | None = None) -> Result:
        """Run one program and wait for its end."""
        return self.submit(code, timeout).result()

    def map(self, codes, timeout: float | None = None) -> list[Result]:
        """Run many programs; results in the order of `codes`."""
        return [future.result() for future in [self.submit(code, timeout) for code in codes]]

    def close(self) -> None:
        """Programs still waiting, or sent, get a `sandbox_error`."""
        with self._lock:
            self._closed = True
        self._caller.close()
        self._pool.shutdown()
        if not self._quiet:
            calls = self._caller
            counts = (
                f"{calls.calls} programs run, {calls.retried} tries repeated, {calls.failed} programs not run"
            )
            print(f"sandbox: {self.level}: {counts}", file=sys.stderr)

    def __enter__(self) -> "RemoteSandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, code: str, timeout: float) -> Result:
        if self._closed:
            return failure("the sandbox was closed")
        try:
            result = self._caller.call(self._job(code, timeout), self._read, timeout + QUEUE)
        except CallError as error:
            result = failure(str(error))
        with self._lock:
            self._broken = self._failures.add(result) or self._broken
        return result

    def _job(self, code: str, timeout: float) -> dict:
        return {"code": code, "language": "python", "run_timeout": timeout, "compile_timeout": timeout}

    def _read(self, answer: object) -> Result:
        """A Result from a RunCodeResponse. Its own failures are Unusable, so that they are tried again."""
        run = answer.get("run_result") if isinstance(answer, dict) else None
        if not isinstance(run, dict) or answer.get("status") not in ("Success", "Failed"):
            said = answer.get("message") or answer.get("status") if isinstance(answer, dict) else answer
            raise Unusable(f"the program was not run: {said}")
        code, late = run.get("return_code"), run.get("status") == "TimeLimitExceeded"
        if not late and (run.get("status") != "Finished" or type(code) is not int):
            raise Unusable(f"status {run.get('status')!r}, return code {code!r}")
        found, wall = [run.get(name) or "" for name in ("stdout", "stderr")], run.get("execution_time") or 0
        if not all(isinstance(text, str) for text in found) or type(wall) not in (int, float):
            raise Unusable(f"expected two texts and seconds, found {[*found, wall]}")
        streams = [text.encode(errors="replace") for text in found]
        stdout, stderr = (stream[: self.keep].decode(errors="replace") for stream in streams)
        killed = 9 if late else -code if code < 0 else None  # it kills with SIGKILL what is late
        return Result(
            status="timeout" if late else "signal" if code < 0 else "error" if code else "ok",
            stdout=stdout,
            stderr=FILE.sub('File "<code>"', stderr),
            exit_code=None if killed else code,
            signal=killed,
            wall=float(wall),
            cpu=math.nan,
            max_rss_mb=math.nan,
            truncated=max(map(len, streams)) > self.keep,
        )
