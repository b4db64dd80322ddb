"""How a program ended, and how many could not be run."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass

RECENT, FEW = 1000, 5  # programs over which failures of ours are counted; how many never exceed a share > 0


SETUP_SECONDS = 10.0  # a snippet that has not begun after this long is our failure, not the model's


class SandboxError(RuntimeError):
    """The sandbox itself cannot do what was asked; never the fault of the program that was run."""


@dataclass(frozen=True)
class Result:
    """How one program ended.

    status: "ok" (exit code 0) | "error" (any other exit code: uncaught exception, sys.exit(3)) | "timeout"
    | "signal" (it crashed) | "output" (killed for printing too much) | "sandbox_error" (our failure: do not
    blame the program). stdout and stderr: the first `output_kb` of each; truncated: there was more.
    exit_code or signal is set, as the process ended; wall and cpu in seconds, max_rss_mb in MiB.
    """

    status: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    wall: float
    cpu: float
    max_rss_mb: float
    truncated: bool


def failure(reason: str) -> Result:
    """The result of a program that we failed to run, or to see the end of."""
    return Result("sandbox_error", "", reason, None, None, 0.0, 0.0, 0.0, False)


class Failures:
    """Counts the programs that we failed to run among recent ones, up to the share that is tolerated."""

    def __init__(self, max_share: float):
        if not max_share >= 0:
            raise ValueError(f"max_failed_share={max_share!r}; expected a share from 0 to 1")
        self.max_share, self.count = max_share, 0
        self._recent: deque[bool] = deque(maxlen=RECENT)  # of the last programs: did we fail to run it?

    def add(self, result: Result) -> str:
        """Note how a program ended, its further tries included. Why to stop, or "" while there is no reason:
        with a share of 0 the first failure is one, else never fewer than a few."""
        self._recent.append(result.status == "sandbox_error")
        self.count = sum(self._recent)
        if self.count <= (self.max_share and max(FEW, self.max_share * len(self._recent))):
            return ""
        return (
            f"{self.count} of the last {len(self._recent)} programs could not be run, each tried "
            f"again; the last because: {result.stderr}"
        )


def seconds(timeout) -> float:
    """A timeout as a float; ValueError where it is no number of seconds that one can wait."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(timeout, str) and 0 < float(timeout) < 1e6:
            return float(timeout)
    raise ValueError(f"expected a timeout in seconds, above 0 and below 1e6, found {timeout!r}")
