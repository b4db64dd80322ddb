"""How a program ended."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = ("namespaces", "landlock", "seccomp", "rlimits")
SETUP_SECONDS = 10.0  # a program that has not begun after this time is a failure of the sandbox


class SandboxError(RuntimeError):
    """The sandbox cannot run programs; never the fault of a program."""


@dataclass(frozen=True)
class Result:
    """How one program ended.

    status: "ok" (exit code 0) | "error" (any other exit code: uncaught exception, sys.exit(3)) | "timeout"
    | "signal" (it crashed) | "output" (killed for printing too much) | "sandbox_error" (the sandbox failed:
    do not blame the program). stdout and stderr: the first `output_kb` of each; truncated: there was more.
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
    """The result of a program that the sandbox failed to run."""
    return Result("sandbox_error", "", reason, None, None, 0.0, 0.0, 0.0, False)
