"""The same numbers from TRL's own functions, where it is installed: pip install '.[peers]'."""

import collections
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from episode import Episode
from grpo import group_advantages
from loss import (
    importance_weights,
    kl,
    logits_to_logprobs,
    policy_loss,
    policy_stats,
    token_logprobs,
    token_weights,
    weighted_sum,
)
from tasks import Problem
from tokenizer import Source
from training.reinforcement import overlong_penalty

pytest.importorskip("trl", reason="TRL, the other side of the comparison, is not installed")

from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import entropy_from_logits, nanstd, selective_log_softmax  # noqa: E402

BATCH, LENGTH, CAP = 5, 9, 1.1


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def data() -> dict[str, Tensor]:
    """Log-probs that have moved beyond every clip, a mask with holes that leaves each row something, and
    advantages of both signs."""
    mask = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(9)) < 0.6
    mask[:, 1] = True
    old = -randn(BATCH, LENGTH, seed=1).abs() - 1
    return {
        "new": old + 0.5 * randn(BATCH, LENGTH, seed=2),
        "old": old,
        "ref": old + 0.5 * randn(BATCH, LENGTH, seed=3),
        "sampler": old + 0.2 * randn(BATCH, LENGTH, seed=4),
        "entropy": randn(BATCH, LENGTH, seed=5).abs(),
        "advantages": torch.tensor([1.0, -0.5, 2.0, -1.5, 0.3]),
        "mask": mask,
    }


def their_loss(d: dict[str, Tensor], new: Tensor, options: dict) -> tuple[Tensor, dict]:
    """GRPOTrainer._compute_loss on given log-probs: a trainer with nothing but its settings. Its whole batch
    is the completion; one column stands for the prompt."""
    metrics = {"eval": collections.defaultdict(list)}
    settings = {
        "_get_per_token_logps_and_entropies": lambda *a, **k: (new, d["entropy"], None),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": options.get("level", "token"),
        "beta": options.get("beta", 0.0),
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=options.get("delta")),
        "loss_type": options.get("loss_type", "bnpo"),
        "epsilon_low": 0.2,
        "epsilon_high": options.get("epsilon_high", 0.28),
        "use_vllm": "importance" in options,
        "vllm_importance_sampling_correction": True,
        "model": SimpleNamespace(training=False),
        "accelerator": SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        "_metrics": metrics,
        "_entropy_bonus_enabled": "entropy_coef" in options,
        "entropy_coef": options.get("entropy_coef"),
        "use_adaptive_entropy": False,
        "max_completion_length": 50,
    }
    ones, ids = torch.ones(BATCH, 1, dtype=torch.long), torch.zeros(BATCH, LENGTH, dtype=torch.long)
    inputs = {"prompt_ids": ones, "prompt_mask": ones, "completion_ids": ids}
    inputs |= {"completion_mask": torch.ones_like(ids), "tool_mask": d["mask"].long()}
    inputs |= {"advantages": d["advantages"], "old_per_token_logps": d["old"]}
    inputs |= {"ref_per_token_logps": d["ref"], "num_items_in_batch": d["mask"].sum()}
    if "importance" in options:
        inputs["importance_sampling_ratio"] = (d["old"] - d["sampler"]).exp().clamp(max=CAP)
    return GRPOTrainer._compute_loss(SimpleNamespace(**settings), None, inputs), metrics["eval"]


def our_loss(d: dict[str, Tensor], new: Tensor, options: dict, mode: str, **policy) -> Tensor:
    terms = policy_loss(new, d["old"], d["advantages"], d["mask"], **policy)
    if "importance" in options:
        terms = terms * importance_weights(d["old"], d["sampler"], d["mask"], CAP)
    if "beta" in options:
        terms = terms + options["beta"] * kl(new, d["ref"], d["mask"], "k3")
    terms = terms - options.get("entropy_coef", 0.0) * d["entropy"]
    return weighted_sum(terms, token_weights(d["mask"], mode, max_tokens=50))


@pytest.mark.parametrize(
    "mode, policy, options",
    [
        ("token_mean", {}, {"loss_type": "bnpo"}),
        ("token_mean", {}, {"loss_type": "dapo"}),
        ("seq_mean", {}, {"loss_type": "grpo"}),
        ("constant", {}, {"loss_type": "dr_grpo"}),
        ("token_mean", {}, {"beta": 0.3}),
        ("token_mean", {}, {"entropy_coef": 0.2}),
        ("token_mean", {}, {"importance": True}),
        ("token_mean", {"dual_clip": 1.5}, {"delta": 1.5}),
        ("seq_mean", {"kind": "gspo"}, {"loss_type": "grpo", "level": "sequence"}),
        # its CISPO has an upper bound on the ratio itself, and no lower one
        ("token_mean", {"kind": "cispo", "clip_low": 1.0}, {"loss_type": "cispo", "epsilon_high": 1.28}),
        ("seq_mean", {}, {"loss_type": "grpo", "beta": 0.1, "importance": True}),
    ],
)
def test_loss_and_gradient_are_those_of_its_grpo_trainer(mode: str, policy: dict, options: dict) -> None:
    d = data()
    ours, theirs = (d["new"].clone().requires_grad_() for _ in range(2))
    got = our_loss(d, ours, options, mode, **policy)
    want, _ = their_loss(d, theirs, options)
    assert got.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-6)
    got.backward()
    want.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert ours.grad.abs().sum() > 0


def test_clip_shares_and_kl_are_those_of_its_grpo_trainer() -> None:
    d = data()
    _, theirs = their_loss(d, d["new"], {"beta": 0.3})
    ours = policy_stats(d["new"], d["old"], d["advantages"], d["mask"], 0.2, 0.28)
    for name in ("low", "high"):
        share = ours[f"clip_{name}"] / ours["tokens"]
        assert share > 0 and theirs[f"clip_ratio/{name}_mean"] == [pytest.approx(share.item())]
    mean = kl(d["new"], d["ref"], d["mask"]).sum() / ours["tokens"]
    assert theirs["kl"] == [pytest.approx(mean.item(), rel=1e-5)]


def test_logprobs_and_entropy_are_its() -> None:
    logits, tokens = randn(3, 7, 11, seed=6), torch.randint(0, 11, (3, 7))
    want = selective_log_softmax(logits[:, :-1] / 0.7, tokens[:, 1:])
    torch.testing.assert_close(logits_to_logprobs(logits, tokens, temperature=0.7)[:, 1:], want)

    class Known(torch.nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return logits

        def head(self, hidden: Tensor) -> Tensor:
            return hidden

    _, entropy = token_logprobs(Known(), tokens, entropy=True)
    torch.testing.assert_close(entropy[:, 1:], entropy_from_logits(logits[:, :-1]))


def test_advantages_have_its_standard_deviation_nan_included() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.2, math.nan], [3.0, -1.0, 0.0, 0.0]])
    want = (rewards - rewards.nanmean(1, keepdim=True)) / (nanstd(rewards, dim=1).unsqueeze(1) + 1e-6)
    got = group_advantages(rewards.flatten(), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    torch.testing.assert_close(got, want.nan_to_num(0.0).flatten())


def test_overlong_penalty_is_its() -> None:
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    for length in (0, 79, 80, 81, 90, 99, 100):
        e = Episode(Problem("toy", 0, "?", 0), 0, finish="stop")
        e.append([1] * 7, Source.PROMPT)
        e.append([1] * length, Source.POLICY)
        assert overlong_penalty(e, 100, 20) == pytest.approx(theirs(completion_ids=[[1] * length])[0])
