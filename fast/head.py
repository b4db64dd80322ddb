"""Log-probs and entropies of a head that is a matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor

# float32 logits that token_logprobs makes at once: 8 MiB, 8,192 words of 256 tokens; on CUDA 256 MiB
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}


def score_by_words(
    rows: Tensor, weight: Tensor, words: Tensor, chunk: int | None, temperature: float, entropy: bool
) -> Tensor:
    """The same of a head that is the product with `weight` (V, D): of words (n,) that rows (n, D) predict."""
    at_once = LOGITS_AT_ONCE["cuda" if weight.is_cuda else "cpu"] if chunk is None else chunk * len(weight)
    block = max(256, at_once // max(1, len(rows)) // 64 * 64)  # words; a multiple that products like
    scores = HeadScores.apply(rows, weight, words, _scale(temperature), entropy, block)
    return torch.stack(scores[: 1 + entropy], dim=1)


class HeadScores(torch.autograd.Function):
    """Log-prob of a word and entropy, (n,) float32 each, of softmax(hidden @ weight.T / temperature).

    hidden (n, D), weight (V, D), words (n,). The vocabulary is taken by blocks of words, forward and
    backward, so that logits (n, V) are never there as a whole; unless they are one block, they are computed
    twice ("Cut Your Losses", 2411.09009). With w_b the probability of block b, log w_b comes from
    the logsumexp of the blocks, and H = sum_b w_b H_b - sum_b w_b log w_b.
    """

    @staticmethod
    def forward(ctx, hidden, weight, words, temperature, with_entropy, block):
        ctx.block, ctx.temperature = block, temperature
        if block >= len(weight):
            logprobs = _tempered(F.linear(hidden, weight), temperature).log_softmax(1)
            entropy = -(logprobs.exp().mul_(logprobs)).sum(1) if with_entropy else None
            ctx.save_for_backward(hidden, weight, words, None, entropy, logprobs)
            return logprobs.gather(1, words[:, None]).squeeze(1), entropy
        chosen = torch.zeros(len(hidden), device=hidden.device)
        sums, inner = [], []
        for v in range(0, len(weight), block):
            logits = _tempered(F.linear(hidden, weight[v : v + block]), temperature)
            sums.append(logits.logsumexp(1))
            at, here = HeadScores.place(words, v, logits.shape[1])
            chosen = torch.where(here, logits.gather(1, at[:, None]).squeeze(1), chosen)
            if with_entropy:
                logprobs = logits - sums[-1][:, None]
                inner.append(-logprobs.exp().mul_(logprobs).sum(1))
        whole, entropy = torch.stack(sums).logsumexp(0), None
        if with_entropy:
            shares = torch.stack(sums) - whole  # log w_b
            entropy = (shares.exp() * (torch.stack(inner) - shares)).sum(0)
        ctx.save_for_backward(hidden, weight, words, whole, entropy, None)
        return chosen - whole, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_chosen, by_entropy):
        """d log p(word) / d logit_v = [v = word] - p_v, and dH / d logit_v = -p_v (log p_v + H)."""
        hidden, weight, words, whole, entropy, kept = ctx.saved_tensors
        by_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        by_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for v in range(0, len(weight), ctx.block):
            part = weight[v : v + ctx.block]
            logprobs = kept
            if kept is None:
                logprobs = _tempered(F.linear(hidden, part), ctx.temperature) - whole[:, None]
            slope = by_chosen[:, None]
            if entropy is not None:
                slope = (logprobs + entropy[:, None]).mul_(by_entropy[:, None]).add_(slope)
            probs = logprobs.exp_() if kept is None else logprobs.exp()  # what is kept may be asked for again
            by_logits = probs.mul_(slope).neg_()
            at, here = HeadScores.place(words, v, len(part))
            by_logits.scatter_add_(1, at[:, None], (by_chosen * here)[:, None])
            by_logits = by_logits.div_(ctx.temperature).to(weight.dtype)
            by_hidden += by_logits @ part
            if by_weight is not None:
                torch.mm(by_logits.t(), hidden, out=by_weight[v : v + ctx.block])
        return by_hidden.to(hidden.dtype), by_weight, None, None, None, None

    @staticmethod
    def place(words: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Where each word is in the block from `start` on, and whether it is there."""
        at = words - start
        return at.clamp(0, size - 1), (at >= 0) & (at < size)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """Float32 logits / temperature."""
    scale = _scale(temperature)
    return logits.float() if scale == 1 else logits.float() / scale


def _scale(temperature: float) -> float:
    """What logits are divided by; 0, which samples greedily, has the log-probs of temperature 1."""
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; expected 0 or more")
    return temperature or 1.0
