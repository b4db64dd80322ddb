"""The sandbox that a command's options describe, and the note about it in a run's config.json."""

import contextlib
import importlib.util
from collections.abc import Iterator

from plumbing.config import UsageError
from plumbing.ranks import World
from plumbing.run import Run
from sandbox import LEVELS, Sandbox, SandboxError, remote_sandbox
from training.options import SandboxOptions


@contextlib.contextmanager
def open_sandbox(options: SandboxOptions, timeout: float = 5.0, quiet: bool = False) -> Iterator[Sandbox]:
    """The sandbox of --sandbox with the modules of --preload that are installed, or the server of
    --sandbox-url; `timeout` (seconds) is for programs that name none. One line on stderr says its level and
    layers, unless `quiet` (the other ranks).

    Raises UsageError where the level is unknown or cannot be reached on this machine; and at the next program
    once more than max_sandbox_errors of the recent ones could not be run.
    """
    level, url, share = options.sandbox, options.sandbox_url, options.max_sandbox_errors
    if url and level == "full":
        raise UsageError("--sandbox full: cannot be checked on the server of --sandbox-url; give one of them")
    installed = []
    for name in filter(None, map(str.strip, options.preload.split(","))):
        with contextlib.suppress(ImportError, ValueError):  # the folder of "folder.module" is not installed
            installed += [name] if importlib.util.find_spec(name) else []
    try:
        if url:
            sandbox = remote_sandbox(url, timeout=timeout, max_failed_share=share, quiet=quiet)
        else:
            sandbox = Sandbox(
                require=level,
                timeout=timeout,
                workers=options.workers,
                memory_mb=options.memory_mb,
                preload=tuple(installed),
                max_failed_share=share,
                quiet=quiet,
            )
    except (ValueError, SandboxError) as error:
        raise UsageError(f"--sandbox {level}: {' '.join(str(error).split())}") from None
    try:
        with sandbox:
            yield sandbox
    except SandboxError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the sandbox does not work any more: {reason}; see docs/sandbox.md") from None


def weakest(world: World, sandbox: Sandbox) -> dict:
    """Level and layers of the weakest rank's sandbox; all ranks call it. A server is weakest."""
    order = {name: i for i, name in enumerate(LEVELS)}
    every = world.gather([{"level": sandbox.level, "layers": sandbox.layers}])
    return min(every, key=lambda found: order.get(found["level"], -1))


def note_sandbox(run: Run, sandbox: Sandbox) -> None:
    """Write the sandbox's level and layers, those of the weakest rank, into config.json; all ranks call it.

    Raises UsageError if the run began at a stronger level.
    """
    found = weakest(run.world, sandbox)
    began = run.found.setdefault("sandbox", found)["level"]
    layers = found["layers"]
    missing = [name for name in LEVELS.get(began, ()) if layers.get(name) != "on"]
    if missing:
        lost = f"{missing[0]} is {layers.get(missing[0], 'unknown there')}"
        raise UsageError(
            f"--resume {run.folder}: the sandbox reaches level {found['level']} here, but the run "
            f"began at level {began}: {lost}; resume where that level is reached, or accept the weaker "
            f'one by removing "found" from {run.folder / "config.json"}'
        )
    run.write_config()
