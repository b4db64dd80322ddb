"""The run folder: configuration, one line of metrics a step, whole episodes, checkpoints, the final model.

    runs/name/config.json          the options of the run; --resume refuses others; and its sandbox's level
              metrics.jsonl        one line per step
              episodes.jsonl       a few whole episodes every few steps
              checkpoints/step-000020/   see below; the newest --keep of them, and the best
              final/               the trained model in the layout that other tools load

    python -m plumbing.shards export runs/name/checkpoints/step-000020 OUT    that layout, from a checkpoint
    python -m plumbing.shards check runs/name                                 is every checkpoint whole?

A checkpoint is PyTorch's own distributed one: every rank writes its share of weights and optimiser states,
at full precision, and any number of ranks reads them back. Beside them lie config.json and the tokenizer's
files, for the export, and manifest.json: step, score, the run's options, size and SHA-256 of every file.
Nothing else is needed to go on: data, curriculum and random numbers are keyed by the step, so the step is the
cursor. On several machines the run folder must be on storage that all of them share.

It is written under another name, its files and folder are synced to the disk, then it is renamed: a folder
with its name is complete, whatever was killed when. On --resume its sums are checked by all ranks together.
One that is not whole is set aside with a line and the one before is used; lines of later steps are dropped
from the logs, which then read as if nothing had happened. The best checkpoint is that of the largest mean
reward, for sft.py of the smallest mean validation loss (loss, without validation), over the steps since the
checkpoint before. Its metadata are a pickle, which runs what it says: resume and export only what you trust.

Ctrl-C or SIGTERM: a checkpoint after the step under way, exit code 0. torchrun passes SIGTERM on and kills
the ranks after 30 s: give it `--shutdown-timeout` of more than a step. Its own exit code is 1 even so.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import model as models
from plumbing import config, folders
from plumbing.config import UsageError
from plumbing.ranks import World
from plumbing.shards import (
    MANIFEST,
    Parts,
    damages,
    digest,
    export,
    read_manifest,
    read_shards,
    reason,
    steps,
    sync,
    together,
    write_shards,
)
from sandbox import LEVELS, RemoteSandbox, Sandbox
from tokenizer import Tokenizer

CHANGEABLE = frozenset(  # what a resumed run may change
    {"resume", "steps", "save_every", "keep", "out", "device", "rank_timeout", "offload", "checkpointing"}
    | {"sandbox_url", "slots", "micro_tokens"}
)


# what makes a checkpoint the best, the first that was measured, and whether more of it is better
SCORES = {"validation_loss_policy": -1, "reward": 1, "loss": -1}


class Run:
    """A script's run folder. Only rank 0 writes; all ranks may read. Raises UsageError where the folder
    exists without --resume, or was made with other options."""

    def __init__(self, cfg, world: World, changeable: frozenset[str] = CHANGEABLE):
        self.cfg, self.world = cfg, world
        self.folder, self.scores = Path(cfg.out), []  # scores: metrics since the last checkpoint
        path = self.folder / "config.json"
        found = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        if any(p.is_file() for p in (self.folder, *self.folder.parents)):
            raise UsageError(f"--out {self.folder}: a file is in the way; expected a folder")
        # a run that failed at once may go again
        begun = found - {"config.json", ".config.json.tmp", "checkpoints"} or self.steps()
        if begun and not cfg.resume:
            raise UsageError(f"--out {self.folder} exists; expected a new folder, or --resume to go on")
        if begun and "config.json" not in found:
            raise UsageError(f"--resume {self.folder}: no config.json; expected the folder of a run")
        if begun and (changed := config.differences(cfg, path, ignore=changeable)):
            raise UsageError(f"--resume {self.folder}: {'; '.join(changed)}; give the run's own options")
        self.found = config.read_found(path) if begun else {}
        self._lock()
        self._write_config()

    def _write_config(self) -> None:
        path = self.folder / "config.json"
        self._alone("--out", lambda: config.write(self.cfg, path, self.found))

    def _alone(self, flag: str, work: Callable) -> None:
        """work() on rank 0. Where the disk refuses it, all ranks raise UsageError."""
        try:
            together(self.world, lambda: work() if self.world.main else None)
        except UsageError as error:
            raise UsageError(f"{flag} {self.folder}: {error}; expected a folder to write to") from error

    def _lock(self) -> None:
        """Refuse a second run in the same folder: ranks may outlive a launcher that was killed. The system
        takes the lock from a process that ends, however it ends."""
        found = ""
        self._alone("--out", lambda: (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True))
        if self.world.main:
            self.lock = os.open(self.folder / "checkpoints" / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else the storage knows no locks
                    found = f"--out {self.folder}: another process still trains in it; end that one first"
        if any(said := self.world.gather([found])):
            raise UsageError(said[0])

    def note_sandbox(self, sandbox: Sandbox | RemoteSandbox) -> None:
        """Write the sandbox's level and layers, those of the weakest rank, into config.json; all ranks call
        it. Raises UsageError where a resumed run began with a stronger level; a server's is unknown, and so
        weaker than any."""
        every = self.world.gather([{"level": sandbox.level, "layers": sandbox.layers}])
        order = list(LEVELS)
        weakest = min(every, key=lambda found: order.index(found["level"]) if found["level"] in order else -1)
        before = self.found.setdefault("sandbox", weakest)
        layers = weakest["layers"]
        missing = [name for name in LEVELS.get(before["level"], ()) if layers.get(name) != "on"]
        if missing:
            lost = f"{missing[0]} is {layers.get(missing[0], 'unknown there')}"
            raise UsageError(
                f"--resume {self.folder}: the sandbox reaches level {weakest['level']} here, but the run "
                f"began at level {before['level']}: {lost}; resume where that level is reached, or accept "
                f'the weaker one by removing "found" from {self.folder / "config.json"}'
            )
        self._write_config()

    def remember(self, name: str, value: str) -> None:
        """Note something that the options do not hold (a digest of the data); it must be the same on all
        ranks, and on --resume. Raises UsageError."""
        if len(set(self.world.gather([value]))) > 1:
            raise UsageError(f"--out {self.folder}: {name} differs between ranks; give all of them the same")
        path = self.folder / f"{name}.txt"
        if self.steps() and path.exists() and path.read_text() != value:
            raise UsageError(
                f"--resume {self.folder}: {name} has changed since; give what the run began with"
            )
        self.world.barrier()
        temporary = path.with_name(f".{path.name}.tmp")  # a kill must not leave half of it
        self._alone("--out", lambda: (temporary.write_text(value), temporary.replace(path)))

    def steps(self) -> list[Path]:
        return steps(self.folder)

    def restore(self, parts: Parts) -> int:
        """Load the newest checkpoint that is whole; the number of steps done (0 without one). Those after it
        are set aside with a line. Raises UsageError where none is whole, or the model another one."""
        folder = self._whole() if self.cfg.resume else None
        done = int(folder.name.removeprefix("step-")) if folder else 0
        if folder:
            from torch.distributed.checkpoint import CheckpointException

            kind, began = self._dtype(), read_manifest(folder)["dtype"]
            if kind != began:
                raise UsageError(
                    f"--resume {folder}: the run computed in {began}, not {kind}; give --dtype {began}"
                )
            try:
                read_shards(folder, parts)
            except (CheckpointException, ValueError, RuntimeError, OSError, KeyError) as error:
                raise UsageError(f"--resume {folder}: {reason(error)}; expected this run's model") from None
        self._truncate_logs(done)
        return done

    def _dtype(self) -> str:
        return str(self.world.dtype(self.cfg.dtype)).removeprefix("torch.")

    def _whole(self) -> Path | None:
        """The newest checkpoint that is whole. Those after it are renamed, so that they count no more."""
        if len(set(self.world.gather([tuple(folder.name for folder in self.steps())]))) > 1:
            raise UsageError(
                f"--out {self.folder}: the ranks see different checkpoints; expected one shared folder"
            )
        damaged = []
        for folder in reversed(self.steps()):
            found = damages(folder, self.world)
            if not found:
                break
            damaged.append((folder, found[0]))
            if self.world.main:
                print(f"{folder}: {found[0]}; not a whole checkpoint, taking the one before", file=sys.stderr)
        else:
            folder = None
        if damaged and folder is None:
            raise UsageError(
                f"--resume {self.folder}: no checkpoint is whole; move them away to start from step 0"
            )
        self.world.barrier()
        if self.world.main:
            for old in self.folder.glob("checkpoints/.step-*"):  # what a kill has left
                shutil.rmtree(old)
            for old, _ in damaged:
                aside = old.with_name(f"{old.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                old.rename(aside)
        self.world.barrier()
        return folder

    def save(self, step: int, parts: Parts, tokenizer: Tokenizer) -> None:
        """Write checkpoints/step-NNNNNN after `step` steps; all ranks call it. Raises UsageError on all of
        them where the disk is full; the checkpoints before stay."""
        folder = self.folder / "checkpoints" / f"step-{step:06}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        try:
            together(self.world, lambda: self._begin(temporary, parts["model"][0], tokenizer))
            together(self.world, lambda: write_shards(temporary, parts))
            sums = together(self.world, lambda: self._sums(temporary))
            sums = dict(item for part in self.world.gather([sums]) for item in part.items())
            together(self.world, lambda: self._commit(step, temporary, folder, sums))
        except UsageError as error:
            room = shutil.disk_usage(self.folder).free
            # PyTorch's writer says this in words of its own
            said = os.strerror(errno.ENOSPC) if room < 2**20 else str(error)
            self.world.barrier()
            if self.world.main:
                shutil.rmtree(temporary, ignore_errors=True)
            before = f"{self.steps()[-1].name} is whole: " if self.steps() else ""
            raise UsageError(
                f"checkpoint of step {step} not written to {self.folder}: {said} ({room / 2**30:.2f} GiB "
                f"free); {before}make room and go on with --resume"
            ) from error
        self.scores = []

    def _begin(self, temporary: Path, model: models.Qwen, tokenizer: Tokenizer) -> None:
        """Rank 0: an empty folder with all that the export needs beside the weights."""
        if self.world.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            folders.write_config(model, temporary, tokenizer)

    def _sums(self, temporary: Path) -> dict[str, dict]:
        """Sizes and sums of the files that this rank has written."""
        mine = f"__{self.world.rank}_"
        return {
            path.name: digest(path)
            for path in temporary.iterdir()
            if path.name.startswith(mine) or self.world.main and not path.name.startswith("__")
        }

    def _commit(self, step: int, temporary: Path, folder: Path, sums: dict) -> None:
        """Rank 0: the manifest, all on the disk, then the folder's name; then remove what is not kept."""
        if not self.world.main:
            return
        metric, score = self._score()
        manifest = {"step": step, "metric": metric, "score": score}
        manifest["dtype"] = self._dtype()
        manifest["options"] = config.to_json(self.cfg)
        (temporary / MANIFEST).write_text(json.dumps(manifest | {"files": sums}, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        folders.exchange(temporary, folder)
        sync(folder.parent)
        shutil.rmtree(temporary, ignore_errors=True)  # what was there under this name, if anything
        for old in set(self.steps()[: -self.cfg.keep]) - {self.best()}:
            aside = old.with_name(f".{old.name}")  # a kill in between must not leave half of it
            old.rename(aside)
            shutil.rmtree(aside)

    def _score(self) -> tuple[str | None, float | None]:
        """The name of what is measured and its mean over the steps since the checkpoint before."""
        for name in SCORES:
            values = [m[name] for m in self.scores if math.isfinite(m.get(name, math.nan))]
            if values:
                return name, sum(values) / len(values)
        return None, None

    def best(self) -> Path | None:
        """The checkpoint of the best score, of equal ones the latest; None before the first."""
        ranks = {}
        for folder in self.steps():
            try:
                found = read_manifest(folder)
            except (OSError, ValueError):  # a damaged one, which --resume would set aside
                continue
            if (name := found.get("metric")) in SCORES:
                ranks[folder] = (-list(SCORES).index(name), SCORES[name] * found["score"])
        return max(reversed(ranks), key=ranks.get, default=None)

    def finish(self) -> None:
        """Write final/, the result for other tools and for the next script: the newest checkpoint's model."""
        self._alone("--out", lambda: export(self.steps()[-1], self.folder / "final"))

    def log(self, step: int, metrics: dict) -> None:
        """Append one line to metrics.jsonl; numbers are rounded to six significant digits. A step that was
        skipped is said on stderr too."""
        if self.world.main:
            self.scores.append(metrics)
            if metrics.get("skipped"):
                print(f"\nstep {step}: no finite gradient, or no token to train: skipped", file=sys.stderr)
            rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
            self._append("metrics.jsonl", {"step": step} | rounded)

    def log_episodes(self, step: int, records: list[dict]) -> None:
        if self.world.main:
            for record in records:
                self._append("episodes.jsonl", {"step": step} | record)

    def _append(self, name: str, record: dict) -> None:
        try:
            with open(self.folder / name, "a") as f:
                f.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UsageError(
                f"{self.folder / name}: {reason(error)}; make room and go on with --resume"
            ) from None

    def _truncate_logs(self, done: int) -> None:
        """Drop lines of steps that will be done again, and a last line that was cut off."""
        for name in ("metrics.jsonl", "episodes.jsonl"):
            path = self.folder / name
            if not self.world.main or not path.exists():
                continue
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= done]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(path)
