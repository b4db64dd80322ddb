"""The client of a SandboxFusion server, which runs the programs elsewhere."""

import math
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from isolation.base import BaseSandbox
from isolation.result import Result, failure
from plumbing.config import UsageError
from plumbing.http import Caller, CallError, Unusable

QUEUE = 60.0  # seconds that a program may wait in the server's queue
FILE = re.compile(r'File "/tmp/tmp\w+/tmp\w+\.py"')  # SandboxFusion's name of a program, new each time


class RemoteSandbox(BaseSandbox):
    """A sandbox whose programs run on a SandboxFusion server (github.com/bytedance/SandboxFusion, /run_code).

    The isolation of the server cannot be checked from here. A program that could not be run after `retries`
    more tries is a `sandbox_error`. A Result's cpu and max_rss_mb are nan: the server does not report them.
    Raises UsageError if the server does not run a first program.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,  # seconds, the start of Python included
        output_kb: int = 64,  # of each stream
        workers: int = 32,  # programs at the server at once
        retries: int = 3,
        max_failed_share: float = 0.01,
        quiet: bool = False,  # no line on stderr
        sleep: Callable[[float], None] | None = None,
    ):
        super().__init__(timeout, max_failed_share)
        self.keep, self.url = output_kb << 10, url.rstrip("/")
        self._caller = Caller(self.url, "/run_code", flag="--sandbox-url", retries=retries, sleep=sleep)
        self.layers = {"remote": self.url}
        try:
            answer = self._caller.call(self._job("print(6 * 7)", self.timeout), self._read)
            if answer.stdout != "42\n":
                raise UsageError(f"--sandbox-url {url}: print(6 * 7) ended as {answer}; is it SandboxFusion?")
        except BaseException:
            self._caller.close()
            raise
        self._caller.calls = self._caller.retried = 0
        self._pool, self._quiet = ThreadPoolExecutor(workers, "remote sandbox"), quiet
        if not quiet:
            print(self, file=sys.stderr)

    @property
    def level(self) -> str:
        return f"remote {self.url}"

    def __str__(self) -> str:
        return f"sandbox: {self.level}; how programs are confined there is the server's affair"

    def _queue(self, code: str, timeout: float) -> Future[Result]:
        return self._pool.submit(self._run, code, timeout)

    def close(self) -> None:
        """Close the connections; programs without a result get a `sandbox_error`."""
        with self._lock:
            self._closed = True
        self._caller.close()
        self._pool.shutdown()
        if not self._quiet:
            run, again, failed = self._caller.calls, self._caller.retried, self._caller.failed
            counts = f"{run} programs run, {again} tries repeated, {failed} programs not run"
            print(f"sandbox: {self.level}: {counts}", file=sys.stderr)

    def _run(self, code: str, timeout: float) -> Result:
        try:
            result = self._caller.call(self._job(code, timeout), self._read, timeout + QUEUE)
        except CallError as error:
            result = failure(str(error))
        with self._lock:
            self._count(result)
        return result

    def _job(self, code: str, timeout: float) -> dict:
        return {"code": code, "language": "python", "run_timeout": timeout, "compile_timeout": timeout}

    def _read(self, answer: object) -> Result:
        """A Result from a RunCodeResponse. Raises Unusable for a failure of the server."""
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
        # a late program was killed with SIGKILL
        killed = 9 if late else -code if code < 0 else None
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
