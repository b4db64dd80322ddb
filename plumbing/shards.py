"""Sharded checkpoints: write, check, read, export.

python -m plumbing.shards export runs/name/checkpoints/step-000020 OUT    a model folder, from a checkpoint
"""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from plumbing import config, folders
from plumbing.config import UsageError
from plumbing.masters import masters, publish
from plumbing.ranks import DTYPES, World

MANIFEST = "manifest.json"
# "model", and whatever else is trained
Parts = dict[str, tuple[nn.Module, torch.optim.Optimizer]]


def state(parts: Parts) -> dict:
    """Weights and optimiser states by parameter name, not copied. An optimiser before its first step is left
    out: get_optimizer_state_dict would give it a state of zeros."""
    # slow to import: half as long as torch
    from torch.distributed.checkpoint import state_dict as dcp

    found = {}
    for name, (model, optimizer) in parts.items():
        model = masters(model)
        found[name] = {"weights": dcp.get_model_state_dict(model)}
        if optimizer.state:
            found[name]["optimizer"] = dcp.get_optimizer_state_dict(model, optimizer)
    return found


@contextlib.contextmanager
def alone_is_fine() -> Iterator[None]:
    """Silences PyTorch's warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def write_shards(folder: Path, parts: Parts) -> None:
    """Write this rank's share of weights and optimiser states to the disk; all ranks call it."""
    from torch.distributed import checkpoint as dcp

    with alone_is_fine():
        dcp.save(state(parts), storage_writer=dcp.FileSystemWriter(folder))


def snapshot(parts: Parts) -> Callable[[], None]:
    """A function that gives this rank's weights and optimiser states the values that they have now. The
    copies are on the host. Call both where the weights are sharded."""
    tensors = [p for model, _ in parts.values() for p in masters(model).parameters()]
    states = [dict(optimizer.state) for _, optimizer in parts.values()]
    tensors += [x for state in states for entry in state.values() for x in entry.values()]
    own = [(x.to_local() if hasattr(x, "to_local") else x).detach() for x in tensors]
    copies = [x.to("cpu", copy=True) for x in own]

    def restore() -> None:
        for x, kept in zip(own, copies, strict=True):
            x.copy_(kept)
        for (model, optimizer), state in zip(parts.values(), states, strict=True):
            publish(model)
            for p in optimizer.state.keys() - state.keys():
                del optimizer.state[p]

    return restore


def read_shards(folder: Path, parts: Parts) -> None:
    """Read what write_shards wrote, with any number of ranks; all ranks call it."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint import state_dict

    reader = dcp.FileSystemReader(folder)
    names = reader.read_metadata().state_dict_metadata
    for name, (copied, optimizer) in parts.items():
        model = masters(copied)
        # these share the tensors of model and optimiser, into which dcp.load writes; the learning rate is
        # that of the options
        saved = {"weights": state_dict.get_model_state_dict(model)}
        if any(key.startswith(f"{name}.optimizer.") for key in names):
            saved["optimizer"] = state_dict.get_optimizer_state_dict(model, optimizer)
        with alone_is_fine():
            dcp.load({name: saved}, storage_reader=reader)
        publish(copied)


def give_back_memory() -> None:
    """To the system, what a checkpoint or a stage needed: a trained model is in cycles of references, and
    glibc keeps the pages of what was freed between other things."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def digest(file: Path) -> dict:
    """Size in bytes and SHA-256 of a file."""
    with open(file, "rb") as f:
        return {"bytes": os.fstat(f.fileno()).st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def read_manifest(folder: Path) -> dict:
    """The manifest of a checkpoint. Raises ValueError for a file that is none, and OSError."""
    found = json.loads((folder / MANIFEST).read_text())
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or ".metadata" not in files or found.get("dtype") not in DTYPES:
        raise ValueError("not what a checkpoint's says")
    if not all(isinstance(file, dict) and set(file) == {"bytes", "sha256"} for file in files.values()):
        raise ValueError("not sizes and sums of files")
    return found


def damages(folder: Path, world: World) -> list[str]:
    """The faults of a checkpoint, a line each. The ranks share the work, and all get the same list."""
    try:
        files = read_manifest(folder)["files"]
    except (OSError, ValueError) as error:
        return world.gather([f"{MANIFEST}: {reason(error)}"])
    found = []
    for name in world.share(sorted(files)):
        try:
            here = digest(folder / name)
        except OSError as error:
            found.append(f"{name}: {reason(error)}")
            continue
        if here["bytes"] != files[name]["bytes"]:
            found.append(f"{name}: {here['bytes']} bytes of {files[name]['bytes']}")
        elif here != files[name]:
            found.append(f"{name}: its bytes have changed")
    return world.gather(found)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reason(error: BaseException) -> str:
    """One line for an error. A CheckpointException of PyTorch is told by its first failure."""
    failures = [failure for failure, _ in getattr(error, "failures", {}).values()]
    first = failures[0] if failures else error
    return getattr(first, "strerror", None) or (str(first).splitlines() or [type(first).__name__])[0]


def together(world: World, work: Callable):
    """work() on this rank. If the disk fails on one rank, all ranks raise UsageError, and none waits."""
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
    """Write a checkpoint's model as a folder that other tools load, in the dtype that the run computed in.

    One process, with the whole model in its memory. Names and shapes are the checkpoint's own.
    """
    from torch.distributed import checkpoint as dcp

    kind, prefix = read_manifest(folder)["dtype"], "model.weights."
    entries = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    sizes = {name.removeprefix(prefix): e.size for name, e in entries.items() if name.startswith(prefix)}
    weights = {name: torch.empty(size) for name, size in sizes.items()}
    with alone_is_fine():
        dcp.load({"model": {"weights": weights}}, checkpoint_id=folder, no_dist=True)
    model = {name: weight.to(DTYPES[kind]) for name, weight in weights.items()}
    entries = folders.read_json(folder / "config.json") | {"torch_dtype": kind}
    folders.write(out, entries, model, texts=folder)


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
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
        case ["-h" | "--help"]:
            print(__doc__.strip())
        case _:
            raise UsageError("expected: export CHECKPOINT OUT")


if __name__ == "__main__":
    config.run(main)
