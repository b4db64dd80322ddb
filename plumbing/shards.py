"""Sharded checkpoints: written, checked, read and exported."""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

import model as models
from plumbing import config, folders
from plumbing.config import UsageError
from plumbing.ranks import DTYPES, World
from tokenizer import Tokenizer

MANIFEST = "manifest.json"


Parts = dict[str, tuple[nn.Module, torch.optim.Optimizer]]  # "model", and what else learns


def state(parts: Parts) -> dict:
    """Weights and optimiser states by parameter names, the tensors themselves. An optimiser that has made no
    step has no state: asking for it would make one of zeros."""
    # half as long to import as torch: only where it is needed
    from torch.distributed.checkpoint import state_dict as dcp

    found = {}
    for name, (model, optimizer) in parts.items():
        found[name] = {"weights": dcp.get_model_state_dict(model)}
        if optimizer.state:
            found[name]["optimizer"] = dcp.get_optimizer_state_dict(model, optimizer)
    return found


def write_shards(folder: Path, parts: Parts) -> None:
    """Write this rank's share of weights and optimiser states, synced to the disk; all ranks call it."""
    from torch.distributed import checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(state(parts), storage_writer=dcp.FileSystemWriter(folder))


def read_shards(folder: Path, parts: Parts) -> None:
    """Read back what write_shards wrote, with whatever number of ranks; all ranks call it."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint import state_dict

    reader = dcp.FileSystemReader(folder)
    names = reader.read_metadata().state_dict_metadata
    for name, (model, optimizer) in parts.items():
        saved = {"weights": state_dict.get_model_state_dict(model)}
        if any(key.startswith(f"{name}.optimizer.") for key in names):
            saved["optimizer"] = state_dict.get_optimizer_state_dict(model, optimizer)  # room to read into
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load({name: saved}, storage_reader=reader)
        state_dict.set_model_state_dict(model, saved["weights"])
        if "optimizer" in saved:
            state_dict.set_optimizer_state_dict(model, optimizer, saved["optimizer"])


def digest(file: Path) -> dict:
    """Size in bytes and SHA-256 of a file."""
    with open(file, "rb") as f:
        return {"bytes": os.fstat(f.fileno()).st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def read_manifest(folder: Path) -> dict:
    """The manifest of a checkpoint. Raises ValueError for what is none, and OSError."""
    found = json.loads((folder / MANIFEST).read_text())
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or ".metadata" not in files or found.get("dtype") not in DTYPES:
        raise ValueError("not what a checkpoint's says")
    if not all(isinstance(file, dict) and set(file) == {"bytes", "sha256"} for file in files.values()):
        raise ValueError("not sizes and sums of files")
    return found


def damages(folder: Path, world: World) -> list[str]:
    """What is wrong with a checkpoint, in words; the ranks share the work, and all get the same answer."""
    try:
        files = read_manifest(folder)["files"]
    except (OSError, ValueError) as error:
        return world.gather([f"{MANIFEST}: {reason(error)}"])
    found = []
    for name in world.share(sorted(files)):
        try:
            here = digest(folder / name)
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if here["bytes"] != files[name]["bytes"]:
            found.append(f"{name}: {here['bytes']} bytes of {files[name]['bytes']}")
        elif here != files[name]:
            found.append(f"{name}: its bytes have changed")
    return world.gather(found)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reason(error: BaseException) -> str:
    """One line for an error, the operating system's own words where it is one of the causes."""
    inner = [e for e, _ in getattr(error, "failures", {}).values()]  # of PyTorch's CheckpointException
    for cause in (error, *inner):
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return cause.strerror
            cause = cause.__cause__ or cause.__context__
    last = inner[0] if inner else error
    return (str(last).splitlines() or [type(last).__name__])[0]


def together(world: World, work: Callable):
    """work() on this rank. Where the disk fails one of the ranks, all of them raise UsageError with its
    words, so that none waits for the others."""
    from torch.distributed.checkpoint import CheckpointException

    result, error = None, None
    try:
        result = work()
    except (OSError, CheckpointException, SafetensorError) as found:
        error = found
    if said := [line for line in world.gather([error and reason(error)]) if line]:
        raise UsageError(said[0]) from error
    return result


def export(folder: Path, out: Path) -> None:
    """Write the model of a checkpoint in the layout that other tools load, in the dtype that its run computed
    in, which is not that of its masters. One process, with all of the model in its memory."""
    from torch.distributed import checkpoint as dcp

    model = models.Qwen(folders.read_config(folder))
    dtype = DTYPES[read_manifest(folder)["dtype"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load({"model": {"weights": model.state_dict()}}, checkpoint_id=folder, no_dist=True)
    folders.save(model.to(dtype), out, Tokenizer.load(folder))


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Each was complete when it got its name."""
    found = (run / "checkpoints").glob("step-*")
    numbered = {p: p.name.removeprefix("step-") for p in found}
    return sorted((p for p, number in numbered.items() if number.isdigit()), key=lambda p: int(numbered[p]))


def main() -> None:
    match sys.argv[1:]:
        case ["export", folder, out]:
            if found := damages(Path(folder), World("cpu")):
                raise UsageError(f"{folder}: {found[0]}; expected a whole checkpoint")
            if Path(out).exists():
                raise UsageError(f"{out} exists; expected a new folder")
            try:
                export(Path(folder), Path(out))
            except (OSError, SafetensorError) as error:
                raise UsageError(f"{out}: {reason(error)}; make room and try again") from error
        case ["check", run]:
            found = {folder: damages(folder, World("cpu")) for folder in steps(Path(run))}
            for folder, said in found.items():
                print(f"{folder}: {said[0] if said else 'whole'}")
            if not found or any(found.values()):
                raise UsageError(f"{run}: {'not every' if found else 'no'} checkpoint is whole")
        case _:
            raise UsageError("expected: export CHECKPOINT OUT, or check RUN")


if __name__ == "__main__":
    config.run(main)
