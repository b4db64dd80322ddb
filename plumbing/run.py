"""The run folder: options, one line of metrics per step, whole episodes, checkpoints, the final model.

    runs/name/config.json          the run's options, which --resume must repeat, and its sandbox's level
              metrics.jsonl        one line per step
              episodes.jsonl       a few whole episodes every few steps
              checkpoints/step-000020/   the newest --keep of them
              final/               the trained model, in the layout that other tools load

A checkpoint is a distributed checkpoint of PyTorch. Every rank writes its share of weights and optimiser
states at full precision, and any number of ranks can read them. The folder also holds config.json and the
tokenizer's files, for the export, and manifest.json: step, options, size and SHA-256 of every file. Data,
curriculum and random numbers are keyed by the step, so a resumed run needs nothing else. Several machines
need a run folder on shared storage.

A checkpoint is written under a temporary name, synced to the disk, then renamed: a folder with its name is
complete. --resume checks the sums of the newest checkpoint. One that is not whole is set aside with a line,
and the one before is used. Later lines of the logs are dropped. A checkpoint contains a pickle, which can run
any code: resume and export only what you trust.

Ctrl-C ends the run with a checkpoint after the current step. SIGTERM drops the current step, within a
micro-batch or a token, and saves the weights after the last finished one. The exit code is 0. torchrun passes
SIGTERM on and kills the ranks after 30 s: give it a longer `--shutdown-timeout` where a checkpoint takes
longer. Its own exit code is 1.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from plumbing import config, folders
from plumbing.config import UsageError
from plumbing.ranks import World
from plumbing.shards import (
    MANIFEST,
    Parts,
    damages,
    digest,
    export,
    give_back_memory,
    read_manifest,
    read_shards,
    reason,
    steps,
    sync,
    together,
    write_shards,
)

CHANGEABLE = frozenset(  # what a resumed run may change
    {"resume", "steps", "save_every", "keep", "out", "device", "rank_timeout", "offload", "checkpointing"}
    | {"sandbox_url", "slots", "micro_tokens"}
)


class Run:
    """A script's run folder. Only rank 0 writes, all ranks read. Raises UsageError for a folder that exists
    without --resume, or whose run has other options."""

    def __init__(self, cfg, world: World, changeable: frozenset[str] = CHANGEABLE):
        self.cfg, self.world = cfg, world
        self.folder = Path(cfg.out)
        path = self.folder / "config.json"
        found = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        if any(p.is_file() for p in (self.folder, *self.folder.parents)):
            raise UsageError(f"--out {self.folder}: a file is in the way; expected a folder")
        # a run that failed before its first step may start again
        begun = found - {"config.json", ".config.json.tmp", "checkpoints"} or self.steps()
        if begun and not cfg.resume:
            raise UsageError(f"--out {self.folder} exists; expected a new folder, or --resume to go on")
        if begun and "config.json" not in found:
            raise UsageError(f"--resume {self.folder}: no config.json; expected the folder of a run")
        if begun and (changed := config.differences(cfg, path, ignore=changeable)):
            raise UsageError(f"--resume {self.folder}: {'; '.join(changed)}; give the run's own options")
        self.found = config.read_found(path) if begun else {}
        self.made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self._lock()
        if world.main and self.made:
            world.discard = self.discard
        self.write_config()

    def discard(self) -> None:
        """Remove the new folder of a run that ends before its first step, and the parents made for it."""
        os.close(self.lock)
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run may use a parent
            for parent in self.made[1:]:
                parent.rmdir()

    def write_config(self) -> None:
        self._alone(lambda: config.write(self.cfg, self.folder / "config.json", self.found))

    def _alone(self, work: Callable) -> None:
        """work() on rank 0. All ranks raise UsageError if the disk fails."""
        try:
            together(self.world, lambda: work() if self.world.main else None)
        except UsageError as error:
            raise UsageError(f"--out {self.folder}: {error}; expected a folder to write to") from error

    def _lock(self) -> None:
        """Refuse a second run in the same folder: ranks can outlive a launcher that was killed. The system
        removes the lock when its process ends."""
        found = ""
        self._alone(lambda: (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True))
        if self.world.main:
            self.lock = os.open(self.folder / "checkpoints" / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # any other error: the storage has no locks
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    found = f"--out {self.folder}: another process still trains in it; end that one first"
        if any(said := self.world.gather([found])):
            raise UsageError(said[0])

    def remember(self, name: str, value: str) -> None:
        """Write name.txt: a value beside the options, such as a digest of the data. Raises UsageError unless
        it is the same on all ranks and on --resume."""
        if len(set(self.world.gather([value]))) > 1:
            raise UsageError(f"--out {self.folder}: {name} differs between ranks; give all of them the same")
        path = self.folder / f"{name}.txt"
        if self.steps() and path.exists() and path.read_text() != value:
            said = f"{name} has changed since; give what the run began with"
            raise UsageError(f"--resume {self.folder}: {said}")
        self.world.barrier()
        self._alone(lambda: config.write_text(path, value))

    def steps(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return steps(self.folder)

    def restore(self, parts: Parts) -> int:
        """The number of steps done, after loading the newest whole checkpoint; 0 without one.

        Damaged checkpoints are set aside with a line. Raises UsageError if none is whole, or if it is not of
        this model and dtype.
        """
        folder = self._whole() if self.cfg.resume else None
        done = int(folder.name.removeprefix("step-")) if folder else 0
        if folder:
            from torch.distributed.checkpoint import CheckpointException

            kind, began = self._dtype(), read_manifest(folder)["dtype"]
            if kind != began:
                said = f"the run computed in {began}, not {kind}; give --dtype {began}"
                raise UsageError(f"--resume {folder}: {said}")
            try:
                read_shards(folder, parts)
                give_back_memory()
            except (CheckpointException, ValueError, RuntimeError, OSError, KeyError) as error:
                raise UsageError(f"--resume {folder}: {reason(error)}; expected this run's model") from None
        self._truncate_logs(done)
        return done

    def _dtype(self) -> str:
        return str(self.world.dtype(self.cfg.dtype, self.cfg.model)).removeprefix("torch.")

    def _whole(self) -> Path | None:
        """The newest whole checkpoint; None before the first one. Newer ones are renamed to *.damaged."""
        if len(set(self.world.gather([tuple(folder.name for folder in self.steps())]))) > 1:
            said = "the ranks see different checkpoints; expected one shared folder"
            raise UsageError(f"--out {self.folder}: {said}")
        damaged = []
        for folder in reversed(self.steps()):
            found = damages(folder, self.world)
            if not found:
                break
            damaged.append(folder)
            if self.world.main:
                print(f"{folder}: {found[0]}; not a whole checkpoint, taking the one before", file=sys.stderr)
        else:
            folder = None
        if damaged and folder is None:
            said = "no checkpoint is whole; move them away to start from step 0"
            raise UsageError(f"--resume {self.folder}: {said}")
        self.world.barrier()
        if self.world.main:
            for old in self.folder.glob("checkpoints/.step-*"):  # what a kill has left
                shutil.rmtree(old)
            for old in damaged:
                aside = old.with_name(f"{old.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                old.rename(aside)
        self.world.barrier()
        return folder

    def save(self, step: int, parts: Parts, tokenizer) -> None:
        """Write checkpoints/step-NNNNNN after `step` steps; all ranks call it.

        config.json has the entries of parts["model"][0].config.to_json(). tokenizer: see folders.write_texts.
        Raises UsageError on all ranks if the disk fails; older checkpoints stay.
        """
        folder = self.folder / "checkpoints" / f"step-{step:06}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        try:
            together(self.world, lambda: self._begin(temporary, parts["model"][0], tokenizer))
            together(self.world, lambda: write_shards(temporary, parts))
            sums = together(self.world, lambda: self._sums(temporary))
            sums = dict(item for part in self.world.gather([sums]) for item in part.items())
            together(self.world, lambda: self._commit(step, temporary, folder, sums))
            give_back_memory()
        except UsageError as error:
            room = shutil.disk_usage(self.folder).free / 2**30
            self.world.barrier()
            if self.world.main:
                shutil.rmtree(temporary, ignore_errors=True)
            said = f"checkpoint of step {step} not written: {error} ({room:.2f} GiB free)"
            raise UsageError(f"--out {self.folder}: {said}; make room and go on with --resume") from error

    def rescue(self, done: int, parts: Parts, tokenizer, restore: Callable[[], None] | None = None) -> None:
        """save(done) in the midst of the next step, unless these weights are on the disk. restore: undoes
        what the step has changed, where it makes several optimiser steps."""
        saved = self.steps() and self.steps()[-1].name == f"step-{done:06}"
        if done and not saved:
            self.world.release(*(model for model, _ in parts.values()))
            if restore:
                restore()
            self.save(done, parts, tokenizer)
        if self.world.main:
            said = (
                f"the weights after step {done} are saved"
                if done
                else "no step is finished, nothing is saved"
            )
            print(f"{self.folder}: {said}", file=sys.stderr)

    def _begin(self, temporary: Path, model: nn.Module, tokenizer) -> None:
        """Rank 0: a folder with the texts that the export needs."""
        if self.world.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            folders.write_texts(temporary, model.config.to_json() | {"torch_dtype": self._dtype()}, tokenizer)

    def _sums(self, temporary: Path) -> dict[str, dict]:
        """Sizes and sums of the files that this rank has written."""
        mine = f"__{self.world.rank}_"
        return {
            path.name: digest(path)
            for path in temporary.iterdir()
            if path.name.startswith(mine) or self.world.main and not path.name.startswith("__")
        }

    def _commit(self, step: int, temporary: Path, folder: Path, sums: dict) -> None:
        """Rank 0: write the manifest, sync all files, give the folder its name, remove old checkpoints."""
        if not self.world.main:
            return
        manifest = {"step": step, "dtype": self._dtype(), "options": config.to_json(self.cfg), "files": sums}
        folders.write_json(temporary / MANIFEST, manifest)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        folders.exchange(temporary, folder)
        sync(folder.parent)
        # an older folder of this name
        shutil.rmtree(temporary, ignore_errors=True)
        for old in self.steps()[: -self.cfg.keep]:
            # a kill must not leave half of it
            aside = old.with_name(f".{old.name}")
            old.rename(aside)
            shutil.rmtree(aside)

    def finish(self) -> None:
        """Write final/: the newest checkpoint's model, for other tools and for the next script."""
        self._alone(lambda: export(self.steps()[-1], self.folder / "final"))

    def log(self, step: int, metrics: dict) -> None:
        """Append a line to metrics.jsonl, with six significant digits; print a skipped step on stderr."""
        if self.world.main:
            if metrics.get("skipped"):
                print(f"\nstep {step}: no finite gradient, or no token to train: skipped", file=sys.stderr)
            rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
            self._append("metrics.jsonl", {"step": step} | rounded)

    def log_episodes(self, step: int, records: list[dict]) -> None:
        """Append one line per record to episodes.jsonl."""
        if self.world.main:
            for record in records:
                self._append("episodes.jsonl", {"step": step} | record)

    def _append(self, name: str, record: dict) -> None:
        try:
            with open(self.folder / name, "a") as f:
                f.write(json.dumps(record) + "\n")
        except OSError as error:
            said = f"{reason(error)}; make room and go on with --resume"
            raise UsageError(f"{self.folder / name}: {said}") from None

    def _truncate_logs(self, done: int) -> None:
        """Drop the lines after step `done`, and a last line that was cut off."""
        for name in ("metrics.jsonl", "episodes.jsonl"):
            path = self.folder / name
            if not self.world.main or not path.exists():
                continue
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            kept = [line for line in lines if done and json.loads(line)["step"] <= done]
            config.write_text(path, "".join(kept))
