"""The loop around a step."""

import contextlib
from collections.abc import Iterator

from episode import Episode
from model import Qwen
from plumbing.config import UsageError
from plumbing.ranks import World
from sample import Sampler
from tokenizer import Source, Tokenizer

MEMORY_SHARE = 0.8  # of what is free, for the sampler's slots; the rest is left to the forward passes


def transcript(episode: Episode, tokenizer: Tokenizer) -> dict:
    """A whole episode for episodes.jsonl; `spans` says who wrote which part of the text. sft.py reads these
    lines: `tokens` and `source` are what was sampled, with nothing encoded again."""
    spans: list[list] = []
    for token, source in zip(episode.tokens, episode.source, strict=True):
        if not spans or spans[-1][0] != Source(source).name:
            spans.append([Source(source).name, []])
        spans[-1][1].append(token)
    return {
        "task": episode.problem.task,
        "index": episode.problem.index,
        "spans": [[name, tokenizer.decode(ids)] for name, ids in spans],
        "tokens": episode.tokens,
        "source": episode.source,
        "answer": episode.answer,
        "correct": episode.correct,
        "reward": episode.reward,
        "calls": [call.result.status for call in episode.calls],
        "finish": episode.finish,
    }


@contextlib.contextmanager
def sampling(model: Qwen, cfg, world: World) -> Iterator[Sampler]:
    """A sampler on the model's present weights, whole on every rank, for a script's rollouts. Its cache has
    room for --slots episodes, or as many as fit into memory (the others wait their turn), and is freed at the
    end, for the update. Raises UsageError where not one fits."""
    length, wanted = cfg.max_prompt + cfg.max_tokens, min(cfg.slots, cfg.prompts * cfg.group)
    with world.whole(model):
        free, each = world.free_memory(), Sampler.slot_bytes(model, length)
        fitting = int(MEMORY_SHARE * free / each)
        if not fitting:
            raise UsageError(
                f"not one episode of --max-prompt + --max-tokens = {length} tokens fits: it needs "
                f"{each / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on {world.device.type}; lower these, or "
                "take more ranks or --offload"
            )
        if fitting < wanted:
            world.tell("slots", f"{fitting} of {wanted} --slots fit into memory; the others wait their turn")
        sampler = Sampler(model, min(wanted, fitting), length, temperature=cfg.temperature)
        yield sampler
        sampler.close()
