"""Scores of a rollout batch that no gradient follows: log-probs, entropies, values."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from episode import Batch, micro_batches
from loss import token_logprobs
from model import Qwen
from plumbing.ranks import World


@torch.no_grad()
def score(
    model: nn.Module,
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batch: Batch,
    mask: Tensor,
    cfg,
    world: World,
    *,
    count: int = 1,
) -> list[Tensor]:
    """The `count` results of function(tokens, mask), (B, T) each, micro-batch by micro-batch; on the host.

    `model` is the one that the function calls; its gathered weights are given back.
    """
    found = [torch.zeros(mask.shape) for _ in range(count)]
    for rows, width in micro_batches(batch.lengths, cfg.micro_tokens, world):
        world.look()
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        for whole, part in zip(found, function(tokens, used), strict=True):
            whole[rows, :width] = part.cpu()
    world.release(model)
    return found


def score_logprobs(model: Qwen, batch: Batch, mask: Tensor, cfg, world: World) -> Tensor:
    """Log-probs (B, T) of the masked-in tokens under a model that is not being trained."""

    def logprobs(tokens: Tensor, used: Tensor) -> tuple[Tensor]:
        return (token_logprobs(model, tokens, mask=used, temperature=cfg.temperature),)

    return score(model, logprobs, batch, mask, cfg, world)[0]
