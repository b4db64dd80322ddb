"""What the sandbox on this machine and the remote one share."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future

from isolation.result import Result, SandboxError

RECENT = 1000  # programs among which failures are counted
FEW = 5  # failures that never exceed a share above 0


class BaseSandbox:
    """Runs programs and counts those that could not be run. A subclass has `_queue` and `close`."""

    def __init__(self, timeout: float, max_failed_share: float):
        if not max_failed_share >= 0:
            raise ValueError(f"max_failed_share={max_failed_share!r}; expected a share from 0 to 1")
        self.timeout, self._max_failed_share = seconds(timeout), max_failed_share
        self._recent: deque[bool] = deque(maxlen=RECENT)  # whether each recent program could not be run
        self._lock = threading.Lock()
        self._closed = False
        self._broken = ""  # why no program is accepted any more

    @property
    def failed(self) -> int:
        """The number of recent programs that could not be run."""
        return sum(self._recent)

    def submit(self, code: str, timeout: float | None = None) -> Future[Result]:
        """The future of a program's Result; returns at once. `timeout` (seconds) is the program's own time.

        Raises SandboxError after `close`, and when too many recent programs could not be run.
        """
        if not isinstance(code, str):
            raise ValueError(f"expected a program, a str, found {code!r}")
        timeout = seconds(self.timeout if timeout is None else timeout)
        with self._lock:
            if self._closed or self._broken:
                raise SandboxError(self._broken or "the sandbox is closed")
            return self._queue(code, timeout)

    def run(self, code: str, timeout: float | None = None) -> Result:
        """The result of one program."""
        return self.submit(code, timeout).result()

    def map(self, codes, timeout: float | None = None) -> list[Result]:
        """The results of many programs, in the order of `codes`; as many run at once as there are workers."""
        return [future.result() for future in [self.submit(code, timeout) for code in codes]]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _count(self, result: Result) -> None:
        """Count a failure; too many make the sandbox refuse programs. Called with the lock held.

        With a share of 0 the first failure is too many, else never fewer than FEW.
        """
        self._recent.append(result.status == "sandbox_error")
        if self.failed > (self._max_failed_share and max(FEW, self._max_failed_share * len(self._recent))):
            self._broken = (
                f"{self.failed} of the last {len(self._recent)} programs could not be run, each tried "
                f"again; the last because: {result.stderr}"
            )


def seconds(timeout) -> float:
    """A timeout as a float. Raises ValueError unless it is above 0 and below 1e6 seconds."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(timeout, str) and 0 < float(timeout) < 1e6:
            return float(timeout)
    raise ValueError(f"expected a timeout in seconds, above 0 and below 1e6, found {timeout!r}")
