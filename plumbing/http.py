"""JSON posted to a server over HTTP, with retries.

    with Caller("http://host:8000/v1", "/chat/completions", flag="--url") as caller:
        reply = caller.call({"model": "m", "messages": [...]}, read)

A call is repeated after status 408, 425, 429 or 5xx, a time-out, a lost connection, and an answer that is not
JSON or that `read` refuses. The pause doubles from 1 s to 60 s, with jitter, unless the server names one
(Retry-After). Any other status is final: one line with the server's words. Redirects are refused, because
they would carry the key to another address. The proxies of the environment (http_proxy, https_proxy,
no_proxy) are used.
"""

import contextlib
import email.utils
import http.client
import json
import math
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from plumbing.config import UsageError

AGAIN = (408, 425, 429)  # statuses below 500 that are retried
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds of back-off
LONGEST_WISH = 600.0  # seconds; a longer Retry-After is final
T = TypeVar("T")


class CallError(UsageError):
    """A call without a usable answer, for good or after the last retry. `status`: that of the last answer,
    None without one."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Unusable(Exception):
    """An answer of the wrong form; the next one may be right."""


class _Refused(Exception):
    """An HTTP status other than success, with the server's words and the pause that it names."""

    def __init__(self, status: int, said: str, pause: float | None):
        super().__init__(f"{status} {http.client.responses.get(status, '')}".strip() + f": {said}")
        self.status, self.pause = status, pause


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """Returns the answer of every status: no HTTPError, and no redirect is followed."""

    def http_response(self, request, response):
        return response

    https_response = http_response


class Caller:
    """Posts JSON to one address; thread-safe. Counts answered `calls`, `failed` calls, and `retried` tries
    beyond a call's first; `lock` guards the counts."""

    def __init__(
        self,
        url: str,  # http:// or https://, host, and perhaps port and path
        path: str = "",  # appended to the url
        *,
        flag: str,  # the option of the url, for messages
        headers: Mapping[str, str] | None = None,
        secret: str = "",  # replaced by [key] in every message
        timeout: float = 60.0,  # seconds of one try
        retries: int = 5,  # tries after the first
        sleep: Callable[[float], None] | None = None,  # for tests; by default a sleep that close() ends
        rng: random.Random | None = None,  # of the jitter
    ):
        self.url, self.flag = url.rstrip("/"), flag
        check_url(self.url, flag)
        self._address = self.url + path
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._headers |= {"User-Agent": "abacus", **(headers or {})}
        self._secret, self.timeout, self.retries = secret, timeout, retries
        self._opener = urllib.request.build_opener(_EveryStatus)
        self._closed = Future()
        self._sleep = sleep or (lambda seconds: wait([self._closed], seconds))
        self._rng, self.lock = rng or random.Random(), threading.Lock()
        self.calls = self.retried = self.failed = 0

    def call(self, body: dict, read: Callable[[object], T], timeout: float | None = None) -> T:
        """read(answer), where answer is the server's JSON. `read` raises Unusable to have the call repeated.
        Raises CallError."""
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            pause, status, final = self._pause(attempt), None, False
            with self.lock:
                self.retried += attempt > 0
            try:
                answer = read(self._post(data, self.timeout if timeout is None else timeout))
            except _Refused as error:
                problem, status = error, error.status
                pause = pause if error.pause is None else error.pause
                final = error.status < 500 and error.status not in AGAIN or pause > LONGEST_WISH
            except (OSError, http.client.HTTPException, Unusable) as error:
                problem, final = error, isinstance(error, ssl.SSLCertVerificationError)
            else:
                with self.lock:
                    self.calls += 1
                return answer
            if final or attempt == self.retries or self._closed.done():
                break
            self._sleep(pause)
        with self.lock:
            self.failed += 1
        raise CallError(self._explain(problem, attempt + 1), status)

    def close(self) -> None:
        """End the calls in progress and refuse later ones: they raise CallError."""
        if not self._closed.done():
            self._closed.set_result(None)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _pause(self, attempt: int) -> float:
        """Seconds before the next try: 1, 2, 4, ... up to 60, times a random factor from 0.5 to 1."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * self._rng.uniform(0.5, 1.0)

    def _explain(self, error: Exception, tries: int) -> str:
        if self._closed.done():
            return f"{self.flag} {self.url}: the call was given up"
        kind = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        # the key goes before the text is cut: half a key is a key
        kind = kind.replace(self._secret, "[key]") if self._secret else kind
        return f"{self.flag} {self.url}: {kind[:400]}" + (f" ({tries} tries)" if tries > 1 else "")

    def _post(self, data: bytes, timeout: float) -> object:
        """The JSON of one try, made in a thread of its own. A deadline and close() can then end the wait; the
        time-out of urllib counts anew with every byte of a slow server."""
        answer = Future()

        def work() -> None:
            try:
                answer.set_result(self._fetch(data, timeout))
            except BaseException as error:  # noqa: BLE001, raised by answer.result
                answer.set_exception(error)

        if not self._closed.done():
            threading.Thread(target=work, daemon=True).start()
        wait([answer, self._closed], timeout, FIRST_COMPLETED)
        if self._closed.done():
            raise OSError("closed")
        return answer.result(timeout=0)

    def _fetch(self, data: bytes, timeout: float) -> object:
        """The JSON of one try. Raises _Refused, Unusable, OSError, HTTPException."""
        request = urllib.request.Request(self._address, data, self._headers)
        try:
            with self._opener.open(request, timeout=timeout) as response:
                text = response.read()
        except urllib.error.URLError as error:
            raise error.reason if isinstance(error.reason, OSError) else error from None
        if response.status != 200:
            raise _Refused(response.status, _said(text), _retry_after(response.headers.get("Retry-After")))
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            kind = response.headers.get("Content-Type", "no content type")
            raise Unusable(f"the answer is no JSON ({kind}): {_said(text)!r}") from None


def check_url(url: str, flag: str) -> None:
    """Raise UsageError for an address that is not http:// or https://, a host, and perhaps a port and a path.
    The message shows no user name or password."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname.encode("idna") and parts.port != 0
    except (ValueError, AttributeError):  # an impossible port or host; no host
        parts, good = None, False
    if parts and "@" in parts.netloc:
        raise UsageError(f"{flag}: the address holds a user name or password; expected one without")
    if not good or parts.query or parts.fragment or re.search(r"[^!-~]", url):
        raise UsageError(f"{flag} {url}: expected an address like http://localhost:8000/v1")


def _said(text: bytes) -> str:
    """The server's error message, in one line."""
    found = text.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(found)
        # OpenAI nests "message" in "error"; FastAPI has "detail"
        for name in ("error", "message", "detail"):
            if isinstance(value, dict) and value.get(name):
                value = value[name]
        found = value if isinstance(value, str) else json.dumps(value)
    return " ".join(found.split()) or "(no message)"


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None for anything else."""
    with contextlib.suppress(ValueError, TypeError):
        return float(text) if math.isfinite(float(text)) and float(text) >= 0 else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
