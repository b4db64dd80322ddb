"""Runs hostile programs in a sandbox of its own and prints what happened, as JSON.

The test starts it with `python -c`, also as another user: argv[1] is the folder of sandbox.py, stdin the job.
"""

import json
import os
import sys

sys.path.insert(0, sys.argv[1])
from sandbox import Sandbox  # noqa: E402

job = json.load(sys.stdin)
os.environ["ABACUS_SECRET"] = "x"
secret = open(job["file"])  # noqa: SIM115 - a descriptor that no program may inherit


def state() -> list:
    """What a program must not change on this machine."""
    s = os.stat(job["file"])
    with open(job["file"]) as canary:
        text = canary.read()
    return [
        (text, s.st_mode, s.st_uid, s.st_mtime),
        sorted(os.listdir(os.path.dirname(job["file"]))),
        [n for d in ("/tmp", "/dev/shm") for n in os.listdir(d) if "abacus-escape" in n],
        (os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))),
        len(os.listdir("/proc/self/fd")),
    ]


report = []
with Sandbox(workers=1, require="none", quiet=True, without=job["without"], memory_mb=512) as sandbox:
    before = state()
    for name, code, timeout in job["cases"]:
        result = sandbox.run(job["prelude"].replace("@PID", str(os.getpid())) + code, timeout)
        after = sandbox.run(job["following"])
        ends = [result.status, result.stdout[:300], result.stderr[-300:]]
        rest = after.status + " " + (after.stdout or after.stderr).strip()
        report.append([name, *ends, state() == before, rest])
    json.dump([sandbox.level, report], sys.stdout)
