"""The stages of a demo, one after the other; what an earlier start has finished is not done again."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.transcripts import metrics
from plumbing import config
from plumbing.ranks import World
from plumbing.shards import give_back_memory


@dataclass(frozen=True)
class Stage:
    """One of the scripts with its options, as anyone would call it."""

    name: str
    about: str  # what it does, in a line
    minutes: float  # on two idle cores
    script: str  # its file, without .py
    run: Callable[[object, World], object]
    options: object
    made: Path  # what stands there when it is finished
    reached: Callable[[Path], str] = lambda made: str(made)  # what there is to say then
    graceful: bool = True  # whether it ends at a step's end on SIGTERM; else at once, and goes on from a file


def trained(final: Path) -> str:
    """What a run's log says of its end: the loss, or the reward at its begin and end."""
    lines = metrics(final.parent)
    rewards = [m["reward"] for m in lines if "reward" in m]
    if not rewards:
        return f"{lines[-1]['step']} steps, loss {lines[-1]['loss']:.3f}"
    return f"{len(rewards)} steps, reward {rewards[0]:.2f} -> {sum(rewards[-5:]) / len(rewards[-5:]):.2f}"


def minutes_left(stages: Sequence[Stage], seconds: dict[str, float]) -> float:
    """Of the stages that are not finished: their minutes on two idle cores, times how much longer than that
    the finished ones took."""
    done = [stage for stage in stages if stage.made.exists() and stage.name in seconds]
    expected = sum(stage.minutes for stage in done)
    pace = sum(seconds[stage.name] for stage in done) / 60 / expected if expected else 1.0
    return pace * sum(stage.minutes for stage in stages if not stage.made.exists())


def run_stages(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Run what is not finished yet; seconds per stage, kept in the folder so that a resumed run adds up."""
    clock = folder / "seconds.json"
    seconds = json.loads(clock.read_text()) if clock.exists() else {}
    for stage in stages:
        if stage.made.exists():
            continue
        left = minutes_left(stages, seconds)
        print(f"\n{stage.name}: {stage.about}; this and what follows: about {left:.0f} minutes")
        print(f"{stage.script}.py {config.command(stage.options)}", flush=True)
        began = time.perf_counter()
        with World(graceful=stage.graceful) as world:
            stage.run(stage.options, world)
        give_back_memory()
        seconds[stage.name] = seconds.get(stage.name, 0.0) + time.perf_counter() - began
        config.write_text(clock, json.dumps(seconds))
        if world.stopping:
            print(f"stopped during {stage.name}; the same command with --resume goes on")
            sys.exit(0)
        print(f"{stage.name}: {stage.reached(stage.made)}, {seconds[stage.name]:.0f} s", flush=True)
    return seconds
