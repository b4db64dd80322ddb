"""Kill -9 at random moments of a GRPO run, resume, and compare with an undisturbed run.

    python bench/kills.py                   24 kills in 60 steps of one rank, 6 in 20 of two, then other ranks
    python bench/kills.py --kills 8 --steps 20 --ranks 2

A small model with random weights, toy tasks, a sandbox. Every life of the run is one process per rank, forked
from this one, which has imported everything. A life is killed up to --late seconds after it has logged a
random step, or after its start. With two ranks, one or both are killed; the other gets torchrun's signals.
After each kill no process may be left (this one adopts orphans) and every named checkpoint must be whole. At
the end weights, optimiser states and logs equal those of the undisturbed run, bit for bit. A third run is
killed after 2 and 4 of 6 steps and goes on with 1, 2 and 4 ranks: its weights must be those of one rank,
within .01 x the learning rate.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.fsdp  # noqa: F401  (here once, instead of in every life)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpo  # noqa: E402
import model as models  # noqa: E402
from plumbing import config, shards  # noqa: E402
from plumbing.config import option  # noqa: E402
from plumbing.ranks import World  # noqa: E402
from training.loading import load_model  # noqa: E402

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
LR = 1e-3
PATIENCE = 120.0  # seconds until a life that does not get on counts as hung
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Config:
    kills: int = option(0, "how many; 0: all three parts", least=0)
    steps: int = option(60, "of the run", least=2)
    ranks: int = option(1, "processes", least=1)
    late: float = option(1.0, "seconds after a step, at most, that a kill comes", least=0)
    seed: int = option(0, "of the moments", least=0)
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


def start(cfg: grpo.Config, ranks: int, log: Path) -> list[int]:
    """One life of the run, a forked process per rank; their ids."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(ranks):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 1
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1), os.dup2(out, 2)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with World("cpu", timeout=60.0) as world:
                grpo.train(cfg, world)
            code = 0
        except BaseException:  # noqa: BLE001  (nothing of the child may reach what follows the fork)
            traceback.print_exc()
        finally:
            os._exit(code)
    return pids


def wait(pids: list[int], seconds: float) -> dict[int, int]:
    """Exit codes of those that end within so many seconds; a signal's is its number, negative."""
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return codes


def left(seconds: float = 20.0) -> list[str]:
    """Command lines of what still runs below this process after so many seconds; there should be nothing."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # an adopted one that has ended
                pass
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children or time.monotonic() > deadline:
            return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children]
        time.sleep(0.02)


def logged(out: Path) -> int:
    """The last step in a run's log."""
    with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return 0


def killed_life(cfg: grpo.Config, ranks: int, step: int, delay: float, victims: list[int], log: Path) -> None:
    """Start, wait for the step to be logged and a little longer, kill; then nothing may be left."""
    pids, deadline = start(cfg, ranks, log), time.monotonic() + PATIENCE
    while logged(Path(cfg.out)) < step:
        assert time.monotonic() < deadline, f"hung before step {step}; see {log}"
        assert not wait(pids[:1], 0.01), f"ended before step {step}; see {log}"
    time.sleep(delay)
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    others = [pid for i, pid in enumerate(pids) if i not in victims]
    for pid in others:
        os.kill(pid, signal.SIGTERM)
    codes = wait(pids, 30.0)
    for pid in set(pids) - codes.keys():  # as torchrun does
        os.kill(pid, signal.SIGKILL)
    print(f"  step {logged(Path(cfg.out)):3}  {list(codes.values())}", flush=True)
    assert not (found := left()), f"left alive: {found}"
    for folder in shards.steps(Path(cfg.out)):
        assert not (found := shards.damages(folder, World("cpu"))), f"{folder}: {found}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights and optimiser states of a checkpoint."""
    reader, kind = dcp.FileSystemReader(folder), dcp.metadata.TensorStorageMetadata
    entries = reader.read_metadata().state_dict_metadata
    found = {k: torch.empty(v.size) for k, v in entries.items() if isinstance(v, kind)}
    dcp.load(found, storage_reader=reader)
    return found


def moved(folder: Path, out: Path) -> float:
    """How far the run has changed any weight, in learning rates: about its steps."""
    a, b = (models.load(place) for place in (folder / "model", out / "final"))
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True)) / LR


def compare(straight: Path, killed: Path, steps: int) -> None:
    """Bit for bit: final/, the last checkpoint with its optimiser, the logs but for their times."""
    name = "final/model.safetensors"
    assert (straight / name).read_bytes() == (killed / name).read_bytes(), name
    a, b = (tensors(out / "checkpoints" / f"step-{steps:06}") for out in (straight, killed))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    logs = [[json.loads(x) for x in (out / "metrics.jsonl").open()] for out in (straight, killed)]
    for log in logs:
        assert [m["step"] for m in log] == list(range(1, steps + 1))
    for m, n in zip(*logs, strict=True):
        assert all(m[k] == n[k] for k in m if "second" not in k), m["step"]


def run_options(cfg: Config, folder: Path, name: str) -> grpo.Config:
    """A small run with a sandbox and a checkpoint every two steps. Random weights earn no rewards that
    differ, so an entropy bonus and the length move them."""
    found = grpo.Config(model=str(folder / "model"), out=str(folder / name), steps=cfg.steps, lr=LR)
    found = replace(found, prompts=2, group=2, max_prompt=160, max_tokens=24, timeout=20.0, protocol="code")
    found = replace(
        found,
        entropy_coef=0.1,
        overlong_buffer=20,
        preload="",
        sandbox=cfg.sandbox,
        save_every=2,
        log_every=1,
    )
    return replace(found, resume=True)


def undisturbed(run: grpo.Config, ranks: int, log: Path) -> float:
    """A life until the end; its seconds."""
    began = time.monotonic()
    codes = wait(start(run, ranks, log), 600.0)
    assert list(codes.values()) == [0] * ranks, f"it failed: {codes}; see {log}"
    assert not (found := left()), f"left alive: {found}"
    return time.monotonic() - began


def part(cfg: Config, folder: Path) -> None:
    """One run with kills against one without."""
    moments = random.Random(cfg.seed)
    runs = [run_options(cfg, folder, f"{cfg.ranks}-{name}") for name in ("straight", "killed")]
    seconds = undisturbed(runs[0], cfg.ranks, folder / "straight.log")
    print(f"{cfg.ranks} ranks, {cfg.steps} steps undisturbed: {seconds:.0f} s", flush=True)
    began, log = time.monotonic(), folder / "killed.log"
    for step in sorted(moments.randrange(cfg.steps - 2) for _ in range(cfg.kills)):
        victims = moments.sample(range(cfg.ranks), moments.randint(1, cfg.ranks))
        killed_life(runs[1], cfg.ranks, step, moments.uniform(0, cfg.late), victims, log)
    undisturbed(runs[1], cfg.ranks, log)
    assert moved(folder, Path(runs[0].out)) > cfg.steps / 4  # equal, and not because nothing was learnt
    compare(*(Path(run.out) for run in runs), cfg.steps)
    seconds = time.monotonic() - began
    print(f"{cfg.ranks} ranks, {cfg.steps} steps, {cfg.kills} kills: {seconds:.0f} s, all equal", flush=True)


def other_ranks(cfg: Config, folder: Path) -> None:
    """Killed with one rank and with two, ended by four; against one rank, in learning rates."""
    cfg = replace(cfg, steps=6)
    straight, broken = (run_options(cfg, folder, f"ranks-{name}") for name in ("straight", "broken"))
    undisturbed(straight, 1, folder / "straight.log")
    for ranks in (1, 2):
        killed_life(broken, ranks, 2 * ranks + 1, 0.0, list(range(ranks)), folder / "ranks.log")
    undisturbed(broken, 4, folder / "ranks.log")
    assert moved(folder, Path(straight.out)) > cfg.steps / 4
    a, b = (models.load(Path(run.out) / "final") for run in (straight, broken))
    gap = max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    print(f"1, 2, 4 ranks: weights within {gap / LR:.2g} x the learning rate of one rank's", flush=True)
    assert gap <= 0.01 * LR


def main() -> None:
    cfg = config.parse(Config, __doc__)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    _, tokenizer = load_model("tiny", World("cpu"), "float32")
    small = models.Qwen(replace(models.TINY, **SMALL)).init_weights(0)
    models.save(small, folder / "model", tokenizer)
    if cfg.kills:
        part(cfg, folder)
    else:
        part(replace(cfg, kills=24), folder)
        part(replace(cfg, kills=6, steps=20, ranks=2), folder)
        other_ranks(cfg, folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    config.run(main)
