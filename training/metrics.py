"""What a step's log line says: metrics of its episodes, means of its token terms, the sampler's error."""

from collections.abc import Sequence

import torch
from torch import Tensor

from episode import Episode, Finish
from loss import kl
from plumbing.ranks import World
from tokenizer import Source


def statistics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Sums over episodes of rewards, code use and lengths, to be added over ranks."""
    calls = [call for e in episodes for call in e.calls]
    return {
        "episodes": float(len(episodes)),
        "reward": sum(e.reward for e in episodes if e.graded),
        "grader_failed": float(sum(e.grader_failed for e in episodes)),
        "sandbox_failed": float(sum(e.finish == Finish.SANDBOX for e in episodes)),
        "accuracy": float(sum(e.correct for e in episodes)),
        "code_ratio": float(sum(bool(e.calls) for e in episodes)),
        "graded_with_code": float(sum(bool(e.calls) and e.graded for e in episodes)),
        "right_with_code": float(sum(e.correct and bool(e.calls) for e in episodes)),
        "calls": float(len(calls)),
        "calls_timed_out": float(sum(c.result.status == "timeout" for c in calls)),
        "calls_failed": float(sum(c.result.status != "ok" for c in calls)),
        "truncated": float(sum(e.finish == Finish.LENGTH for e in episodes)),
        "response_tokens": float(sum(len(e.policy_tokens) for e in episodes)),
        "tool_tokens": float(sum(s == Source.TOOL for e in episodes for s in e.source)),
    }


def episode_metrics(episodes: Sequence[Episode], group: int, world: World) -> dict[str, float]:
    """Means over the episodes of all ranks: reward, accuracy, code use, lengths, kinds of groups.

    calls_ran and calls_timed_out are shares of the calls, accuracy_with_code and accuracy_without_code are of
    the episodes with and without a call; a share of nothing is left out. Reward, accuracies and groups are of
    the graded episodes.
    """
    sums = statistics(episodes)
    for i in range(0, len(episodes), group):
        graded = [e.correct for e in episodes[i : i + group] if e.graded]
        kind = "all_wrong" if not any(graded) else "all_right" if all(graded) else "mixed"
        sums[f"groups_{kind}"] = sums.get(f"groups_{kind}", 0.0) + group
    names = sorted({*sums, "groups_all_right", "groups_all_wrong", "groups_mixed"})
    total = world.sum(torch.tensor([sums.get(n, 0.0) for n in names], dtype=torch.float64)).tolist()
    total = dict(zip(names, total, strict=True))
    right, coded, calls = total.pop("right_with_code"), total.pop("graded_with_code"), total["calls"]
    count = max(1.0, total.pop("episodes"))
    graded = count - total["sandbox_failed"]
    shares = {
        "calls_ran": (calls - total["calls_failed"], calls),
        "calls_timed_out": (total.pop("calls_timed_out"), calls),
        "accuracy_with_code": (right, coded),
        "accuracy_without_code": (total["accuracy"] - right, graded - coded),
    }
    means = {name: value / count for name, value in total.items()}
    means |= {name: total[name] / max(1.0, graded) for name in ("reward", "accuracy")}
    return means | {name: part / whole for name, (part, whole) in shares.items() if whole}


def accumulate(sums: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    """Add a micro-batch's sums over tokens to those of its step; of ratio_max, the maximum."""
    for name, value in parts.items():
        new = torch.maximum if name == "ratio_max" else torch.add
        sums[name] = new(sums[name], value.detach()) if name in sums else value.detach()


def means(steps: Sequence[dict[str, Tensor]], world: World) -> dict[str, float]:
    """The sums of each optimiser step on this rank -> means over all ranks' tokens, of losses over steps; and
    "tokens", how many there were."""
    if not steps[0]:  # no rank has a row
        return {"tokens": 0.0}
    columns = {name: torch.stack([sums[name] for sums in steps]) for name in steps[0]}
    found = {}
    if "ratio_max" in columns:
        found["ratio_max"] = world.max(columns.pop("ratio_max").max()).item()
    total = world.sum(torch.stack([column.sum() for column in columns.values()])).tolist()
    total = dict(zip(columns, total, strict=True))
    tokens = total.pop("tokens", 0.0)
    found |= {k: v / (len(steps) if "loss" in k else max(1.0, tokens)) for k, v in total.items()}
    return found | {"tokens": tokens}


class Mismatch:
    """The difference of the sampler's and the trainer's log-probs: mean k3 and the largest one. Both are the
    same function of the same weights, so anything but rounding is a bug."""

    def __init__(self):
        self.k3, self.tokens, self.largest = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> None:
        """Add a micro-batch: the trainer's and the sampler's log-probs and their mask, (B, T)."""
        self.k3 += kl(sampler_logprobs, logprobs, mask).sum()
        self.tokens += mask.sum()
        gaps = (sampler_logprobs - logprobs).masked_fill(~mask, 0).abs().flatten()
        self.largest = torch.cat([gaps, self.largest[None]]).max()

    def metrics(self, world: World) -> dict[str, float]:
        """The figures of all ranks, for the log."""
        k3, tokens = world.sum(torch.stack([self.k3, self.tokens])).tolist()
        return {"mismatch_k3": k3 / max(1.0, tokens), "mismatch_max": world.max(self.largest).item()}
