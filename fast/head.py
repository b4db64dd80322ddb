"""Log-probs and entropies from a head that is one matrix, by vocabulary chunks: never all logits at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

# float32 logits that token_logprobs makes at once: 8 MiB, 8,192 entries of the vocabulary for 256 tokens; on
# CUDA 256 MiB
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Float32 logits / temperature. Temperature 0 samples greedily and has the log-probs of temperature 1."""
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; expected 0 or more")
    return logits.float() if temperature in (0, 1) else logits.float() / temperature


def score_by_vocabulary(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, temperature: float, entropy: bool
) -> Tensor:
    """Log-probs of targets (n,), and with `entropy` entropies: (n, 1 or 2), from hidden (n, D) and the head's
    weight (V, D). At most chunk x V logits are there at a time, or those of 256 entries of the vocabulary."""
    at_once = LOGITS_AT_ONCE["cuda" if weight.is_cuda else "cpu"] if chunk is None else chunk * len(weight)
    size = max(256, at_once // max(1, len(hidden)) // 64 * 64)  # a multiple that matrix products like
    scores = HeadScores.apply(hidden, weight, targets, temperature, entropy, size)
    return torch.stack(scores[: 1 + entropy], dim=1)


class HeadScores(torch.autograd.Function):
    """Log-probs of targets (n,) and entropies (n,), float32, of softmax(hidden @ weight.T / temperature).

    hidden (n, D), weight (V, D). The vocabulary is taken in chunks of `size`, forward and backward, so that
    logits are computed twice unless there is one chunk ("Cut Your Losses", 2411.09009). With w_c the
    probability of chunk c, from the logsumexp of each chunk, H = sum_c w_c H_c - sum_c w_c log w_c.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, with_entropy, size):
        ctx.size, ctx.temperature = size, temperature
        if size >= len(weight):
            logprobs = tempered(F.linear(hidden, weight), temperature).log_softmax(1)
            entropy = -(logprobs.exp().mul_(logprobs)).sum(1) if with_entropy else None
            ctx.save_for_backward(hidden, weight, targets, None, entropy, logprobs)
            return logprobs.gather(1, targets[:, None]).squeeze(1), entropy
        chosen = torch.zeros(len(hidden), device=hidden.device)
        sums, inner = [], []
        for v in range(0, len(weight), size):
            logits = tempered(F.linear(hidden, weight[v : v + size]), temperature)
            sums.append(logits.logsumexp(1))
            at, here = HeadScores.place(targets, v, logits.shape[1])
            chosen = torch.where(here, logits.gather(1, at[:, None]).squeeze(1), chosen)
            if with_entropy:
                logprobs = logits - sums[-1][:, None]
                inner.append(-logprobs.exp().mul_(logprobs).sum(1))
        whole, entropy = torch.stack(sums).logsumexp(0), None
        if with_entropy:
            shares = torch.stack(sums) - whole  # log w_c
            entropy = (shares.exp() * (torch.stack(inner) - shares)).sum(0)
        ctx.save_for_backward(hidden, weight, targets, whole, entropy, None)
        return chosen - whole, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_chosen, by_entropy):
        """d log p(target) / d logit_v = [v = target] - p_v, and dH / d logit_v = -p_v (log p_v + H)."""
        hidden, weight, targets, whole, entropy, kept = ctx.saved_tensors
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        by_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for v in range(0, len(weight), ctx.size):
            part = weight[v : v + ctx.size]
            logprobs = kept
            if kept is None:
                logprobs = tempered(F.linear(hidden, part), ctx.temperature) - whole[:, None]
            slope = by_chosen[:, None]
            if entropy is not None:
                slope = (logprobs + entropy[:, None]).mul_(by_entropy[:, None]).add_(slope)
            probs = logprobs.exp_() if kept is None else logprobs.exp()  # backward() may run twice
            by_logits = probs.mul_(slope).neg_()
            at, here = HeadScores.place(targets, v, len(part))
            by_logits.scatter_add_(1, at[:, None], (by_chosen * here)[:, None])
            by_logits = by_logits.div_(ctx.temperature or 1).to(weight.dtype)
            by_hidden += by_logits @ part
            if by_weight is not None:
                torch.mm(by_logits.t(), hidden, out=by_weight[v : v + ctx.size])
        return by_hidden.to(hidden.dtype), by_weight, None, None, None, None

    @staticmethod
    def place(targets: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Where each target is in the chunk from `start` on, and whether it is there."""
        at = targets - start
        return at.clamp(0, size - 1), (at >= 0) & (at < size)
