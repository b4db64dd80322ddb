"""What a step's log line says."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from episode import Episode
from loss import kl
from plumbing.ranks import World
from tokenizer import Source


def statistics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Sums over episodes, to be added over ranks and divided by "episodes": what they were worth, how they
    used the interpreter, how long they were."""
    calls = [call for e in episodes for call in e.calls]
    sandbox_failed = sum(e.finish == "sandbox" for e in episodes)
    return {
        "episodes": float(len(episodes)),
        "reward": sum(e.reward for e in episodes if not math.isnan(e.reward)),
        "grader_failed": float(sum(math.isnan(e.reward) for e in episodes) - sandbox_failed),
        "sandbox_failed": float(sandbox_failed),
        "accuracy": float(sum(e.correct for e in episodes)),
        "code_ratio": float(sum(bool(e.calls) for e in episodes)),
        "graded_with_code": float(sum(bool(e.calls) and not math.isnan(e.reward) for e in episodes)),
        "right_with_code": float(sum(e.correct and bool(e.calls) for e in episodes)),
        "calls": float(len(calls)),
        "calls_timed_out": float(sum(c.result.status == "timeout" for c in calls)),
        "calls_failed": float(sum(c.result.status != "ok" for c in calls)),
        "truncated": float(sum(e.finish == "length" for e in episodes)),
        "response_tokens": float(sum(len(e.policy_tokens) for e in episodes)),
        "tool_tokens": float(sum(s == Source.TOOL for e in episodes for s in e.source)),
    }


def describe(episodes: Sequence[Episode], group: int, world: World) -> dict[str, float]:
    """What the episodes of all ranks were like: rewards, code use, and how many groups can teach anything.

    Means over episodes, but for calls_ran and calls_timed_out, which are shares of the calls, and accuracy
    with and without code, which are of the episodes that called, and did not. A share of nothing is left out.
    Where grader or sandbox failed, nobody knows whether the answer was right: reward, accuracies and groups
    are of the other episodes, 0 without any.
    """
    sums = statistics(episodes)
    for i in range(0, len(episodes), group):
        graded = [e.correct for e in episodes[i : i + group] if not math.isnan(e.reward)]
        kind = "all_wrong" if not any(graded) else "all_right" if all(graded) else "mixed"
        sums[f"groups_{kind}"] = sums.get(f"groups_{kind}", 0.0) + group
    names = sorted({*sums, "groups_all_right", "groups_all_wrong", "groups_mixed"})
    total = world.sum(torch.tensor([sums.get(n, 0.0) for n in names], dtype=torch.float64)).tolist()
    total = dict(zip(names, total, strict=True))
    right, coded, calls = total.pop("right_with_code"), total.pop("graded_with_code"), total["calls"]
    count = max(1.0, total.pop("episodes"))
    graded = count - total["grader_failed"] - total["sandbox_failed"]
    shares = {
        "calls_ran": (calls - total["calls_failed"], calls),
        "calls_timed_out": (total.pop("calls_timed_out"), calls),
        "accuracy_with_code": (right, coded),
        "accuracy_without_code": (total["accuracy"] - right, graded - coded),
    }
    means = {name: value / count for name, value in total.items()}
    means |= {name: total[name] / max(1.0, graded) for name in ("reward", "accuracy")}
    return means | {name: part / whole for name, (part, whole) in shares.items() if whole}


def speed(
    metrics: dict[str, float], episodes: int, began: float, sampled: float, prepared: float
) -> dict[str, float]:
    """Seconds of a step's three phases, of which the last ends now, from the times (time.perf_counter) of its
    begin, of the end of sampling and of the forward passes before the first update; and tokens per second of
    the whole step: what the model and the interpreter wrote, without prompts."""
    ended = time.perf_counter()
    tokens = episodes * (metrics["response_tokens"] + metrics["tool_tokens"])
    return {
        "seconds_rollout": sampled - began,
        "seconds_prepare": prepared - sampled,
        "seconds_update": ended - prepared,
        "tokens_per_second": tokens / (ended - began),
    }


class Mismatch:
    """How far the sampler's log-probs are from the trainer's: they are the same function of the same weights,
    so anything but rounding is a bug. mean k3 and largest difference over the tokens that were compared."""

    def __init__(self):
        self.k3, self.tokens, self.largest = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, trainer: Tensor, sampler: Tensor, mask: Tensor) -> None:
        """Add a micro-batch: log-probs (B, T), and a mask of the tokens that were sampled and scored."""
        self.k3 += kl(sampler, trainer, mask).sum()
        self.tokens += mask.sum()
        gaps = (sampler - trainer).masked_fill(~mask, 0).abs().flatten()
        self.largest = torch.cat([gaps, self.largest[None]]).max()

    def metrics(self, world: World) -> dict[str, float]:
        """The figures of all ranks, for the log."""
        k3, tokens = world.sum(torch.stack([self.k3, self.tokens])).tolist()
        return {"mismatch_k3": k3 / max(1.0, tokens), "mismatch_max": world.max(self.largest).item()}
