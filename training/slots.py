"""The sampler of a rollout, with as many slots as fit into the free memory of its rank."""

import contextlib
from collections.abc import Iterator

from fast.parts import slot_bytes
from model import Qwen
from plumbing.config import UsageError
from plumbing.ranks import World
from sample import Sampler

MEMORY_SHARE = 0.8  # of the free memory, for the sampler's slots; the rest is left to the forward passes


@contextlib.contextmanager
def sampling(
    model: Qwen,
    cfg,
    world: World,
    rows: int,
    *,
    length: int,
    temperature: float | None = None,
    top_p: float = 1.0,
) -> Iterator[Sampler]:
    """A sampler on the model's present weights, whole on every rank, at --temperature or another one. Its
    cache has room for `rows` episodes of `length` tokens, at most --slots, or for as many as fit into memory
    (the others wait), and is freed at the end, for an update. Raises UsageError where not one fits."""
    wanted = min(cfg.slots, rows)
    temperature = cfg.temperature if temperature is None else temperature
    with world.whole(model):
        free, each = world.free_memory(), slot_bytes(model, length)
        fitting = int(MEMORY_SHARE * free / each)
        if not fitting:
            raise UsageError(
                f"not one episode of prompt + --max-tokens = {length} tokens fits: it needs "
                f"{each / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on {world.device.type}; lower "
                "--max-prompt or --max-tokens; in training, more ranks or --offload help too"
            )
        if fitting < wanted:
            world.tell("slots", f"{fitting} of {wanted} --slots fit into memory; the others wait their turn")
        sampler = Sampler(model, min(wanted, fitting), length, temperature=temperature, top_p=top_p)
        yield sampler
        sampler.close()
