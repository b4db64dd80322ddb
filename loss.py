"""The masked-token utility that SFT, GRPO and PPO share: log-probabilities, token weights, loss terms.

Every per-token tensor is (B, T) and entry t describes tokens[:, t]; B sequences, T tokens, V vocabulary.
Every loss is a weighted sum over tokens, so a training step reads the same in all three scripts:

    weights = token_weights(mask, all_reduce=world.sum)         # once per optimiser step, whole batch
    for rows, width in micro_batches(lengths, max_tokens):      # which only slice, never average
        used = mask[rows, :width]
        logprobs = token_logprobs(model, tokens[rows, :width], mask=used)
        terms = -logprobs                                       # SFT; or, for GRPO and PPO:
        terms = policy_loss(logprobs, old_logprobs[rows, :width], advantages[rows, :width], used)
        weighted_sum(terms, weights[rows, :width]).backward()

Hence world size, micro-batch size, order and padding change nothing. All arithmetic is float32. Masked
positions may hold anything, NaN included: inputs are overwritten with zeros there (`_masked`) before any
arithmetic, because 0 * NaN is NaN, and so is the gradient of torch.where through an overflowing exp.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast.head import LOGITS_AT_ONCE, score_by_vocabulary, tempered
from fast.packing import Packing, packs, read_lengths

# ---- log-probabilities ---------------------------------------------------------------------------


def logits_to_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(tokens[:, t] | tokens[:, :t]) as (B, T) float32, from logits (B, T, V) and tokens (B, T).

    logits[:, t] predicts tokens[:, t + 1]: the shift by one happens here and nowhere else. Nothing predicts
    column 0, which is 0. The last logits are not used, and may be left out: (B, T - 1, V).
    """
    targets = tokens[:, 1:]
    logits = tempered(logits[:, : targets.size(1)], temperature)
    chosen = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return F.pad(chosen, (1, 0))


def token_logprobs(
    model: nn.Module,
    tokens: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probs (B, T) float32 of tokens (B, T) under a model; with `entropy`, also entropies (B, T) of the
    distributions that they were drawn from, exact and differentiable.

    model    forward(tokens) gives causal hidden states (B, T, D), head(hidden) gives logits (..., V)
    mask     (B, T) tokens that count, by default all; results are exactly 0 elsewhere, and in column 0
    lengths  (B,) tokens at or beyond a row's length do not count, and may be any integer
    chunk    positions whose V logits are there at a time, by default LOGITS_AT_ONCE / V

    Only positions that predict a counted token go through the head. Logits cost the most memory: with several
    chunks, the backward pass computes them again. A Qwen computes no padding (Packing), and its chunks are of
    the vocabulary (score_by_vocabulary). If nothing counts, the result still depends on the model, so that a
    rank without data takes part in the backward pass.
    """
    counts = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool().clone()
    if lengths is not None:
        inside = torch.arange(tokens.size(1), device=tokens.device) < lengths.to(tokens.device).unsqueeze(1)
        tokens, counts = tokens.masked_fill(~inside, 0), counts & inside
    counts[:, 0] = False

    where = counts.flatten().nonzero().squeeze(1)  # the counted tokens; the position before predicts each
    targets = tokens.flatten()[where]
    if packs(model):
        p = Packing(tokens, read_lengths(counts))
        hidden = model(p.tokens, positions=p.positions, attend=p.attend).flatten(0, 1)
        hidden = hidden[p.place.flatten()[where - 1]]
        scores = score_by_vocabulary(hidden, model.head_weight, targets, chunk, temperature, entropy)
    else:
        hidden = model(tokens).flatten(0, 1)[where - 1]
        scores = score_by_rows(model.head, hidden, targets, chunk, temperature, entropy)
    results = torch.zeros(tokens.numel(), scores.size(1), device=scores.device)
    results = results.index_copy(0, where, scores).view(*tokens.shape, scores.size(1))
    return (results[..., 0], results[..., 1]) if entropy else results[..., 0]


def score_by_rows(
    head: Callable, hidden: Tensor, targets: Tensor, chunk: int | None, temperature: float, entropy: bool
) -> Tensor:
    """Log-probs of targets (n,) and, with `entropy`, entropies: (n, 1 or 2), from hidden (n, D), any head."""
    if chunk is None:
        chunk = max(1, LOGITS_AT_ONCE["cuda" if hidden.is_cuda else "cpu"] // head(hidden[:0]).size(-1))

    def score(rows: Tensor, pairs: Tensor) -> Tensor:  # (n, 1, D), (n, 2) -> (n, 1 or 2)
        logits = head(rows)
        scores = [logits_to_logprobs(logits, pairs, temperature)[:, 1:]]
        return torch.cat(scores + [_entropy(logits, temperature)] if entropy else scores, dim=1)

    # each target is the second token of a sequence of two, whose first does not matter
    pairs = F.pad(targets[:, None], (1, 0))
    chunks = list(zip(hidden[:, None].split(chunk), pairs.split(chunk), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        scores = [checkpoint(score, *c, use_reentrant=False, preserve_rng_state=False) for c in chunks]
    else:
        scores = [score(*c) for c in chunks]
    return torch.cat(scores)


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    """H = -sum_v p_v log p_v, (..., V) -> (...); an entry of probability 0 contributes 0."""
    logprobs = tempered(logits, temperature).log_softmax(-1)
    probs = logprobs.exp()
    return -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(-1)


# ---- from tokens to one number -------------------------------------------------------------------


def token_weights(
    mask: Tensor,
    mode: str = "token_mean",
    *,
    max_tokens: int | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Weights (B, T) that make a sum over tokens a mean; 0 where mask (B, T) is 0.

    token_mean   m / N              N tokens in all (DAPO, arXiv 2503.14476, eq. 8)
    seq_mean     m / (n_i S)        n_i tokens in sequence i, S sequences with any (GRPO, 2402.03300, eq. 3)
    constant     m / (B max_tokens) B sequences, max_tokens from the configuration (Dr. GRPO, 2503.20783)

    `all_reduce` gets N, S or B as a scalar tensor and returns its sum over ranks. Call this once per
    optimiser step with the rank's whole share of the batch. With nothing masked in, all weights are 0.
    Example: losses [1 2 3 4 5 6], [10], [2 2], [4 4 4]. Their token mean is 47 / 12 = 3.9167, their sequence
    mean (3.5 + 10 + 2 + 4) / 4 = 4.875. Means of two micro-batches of two, averaged, give a wrong 3.814.
    """
    mask = mask.bool()
    per_sequence = mask.sum(dim=1, keepdim=True)
    if mode == "token_mean":
        count, share = per_sequence.sum(), 1
    elif mode == "seq_mean":
        count, share = (per_sequence > 0).sum(), per_sequence.clamp(min=1)
    elif mode == "constant":
        if not max_tokens or max_tokens < 0:
            raise ValueError(f"constant weights need max_tokens of at least 1, not {max_tokens}")
        count, share = torch.tensor(mask.size(0), device=mask.device), max_tokens
    else:
        raise ValueError(f"unknown mode {mode!r}: expected token_mean, seq_mean or constant")
    total = count if all_reduce is None else all_reduce(count)
    return mask.float() / (total.clamp(min=1) * share)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """sum_bt weights * x, a scalar. Where a weight is 0, x adds exactly 0 to value and gradient."""
    return (_masked(x, weights != 0) * weights).sum()


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """Float32 x with 0 where mask is 0: neither value nor gradient passes."""
    return x.float().masked_fill(~mask.bool(), 0.0)


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, all_reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) of the masked-in entries, (B, T) float32; 0 off the mask.

    The variance is unbiased (ddof 1). `all_reduce` gets the count, the sum and the squared deviations, each
    as a scalar tensor, and returns its sum over ranks: every rank must call this, also one without entries.
    Sums use float64: equal inputs give exactly 0."""
    mask, add = mask.bool(), all_reduce or (lambda s: s)
    x = x.double().masked_fill(~mask, 0.0)
    count = add(mask.sum())
    mean = add(x.sum()) / count.clamp(min=1)
    centred = (x - mean).masked_fill(~mask, 0.0)
    variance = add(centred.square().sum()) / (count - 1).clamp(min=1)
    return (centred / (variance + 1e-8).sqrt()).float()


# ---- policy --------------------------------------------------------------------------------------


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    kind: str = "ppo",
) -> Tensor:
    """The loss of each token, (B, T), from log-probs (B, T), advantages A (B,) or (B, T) and mask (B, T).

    ppo    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprobs - old_logprobs): PPO, arXiv
           1707.06347, eq. 7; with two clips, DAPO, arXiv 2503.14476, eq. 10. `dual_clip` c > 1 limits the
           loss of a token of A < 0 to -c A (arXiv 1912.09729).
    gspo   the same with one ratio per sequence, s_i = exp(mean_t of log r) (arXiv 2507.18071, eq. 5-7).
           Its paper clips at 3e-4 and 4e-4, and weights by seq_mean.
    cispo  -stopgrad(clip(r)) A logprobs: a clipped token still learns (arXiv 2506.13585, eq. 4-5).

    Only `logprobs` receives a gradient. On the first pass r is 1 and the gradient is -A: REINFORCE.
    """
    if dual_clip is not None and (dual_clip <= 1 or kind == "cispo"):
        raise ValueError(f"dual_clip is {dual_clip} with {kind}; it must be above 1, and is not for cispo")
    logprobs = _masked(logprobs, mask)
    advantages = _per_token(advantages, mask)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    if kind == "gspo":
        # the value is s_i; the gradient of token t is that of A_t only (GSPO-token, eq. 13-14)
        mean = sequence_log_ratio(logprobs, old_logprobs, mask)
        log_ratio = mean.detach() + (logprobs - logprobs.detach())
    elif kind not in ("ppo", "cispo"):
        raise ValueError(f"unknown kind {kind!r}: expected ppo, gspo or cispo")

    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    if kind == "cispo":
        return -clipped.detach() * advantages * logprobs
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


@torch.no_grad()
def policy_stats(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> dict[str, Tensor]:
    """Diagnostics of `policy_loss` as float32 scalars: sums over the mask, except the one maximum.

    tokens     number of tokens; after adding up micro-batches and ranks, divide the other sums by it
    approx_kl  sum of r - 1 - log r, which estimates KL(old || new) (k3, see `kl`)
    clip_low   number of tokens with A < 0 and r < 1 - clip_low: clipped, no gradient
    clip_high  number of tokens with A > 0 and r > 1 + clip_high: clipped, no gradient
    ratio      sum of r, per token; its mean should stay near 1
    ratio_max  maximum of r, 0 without tokens: combine by maximum, do not divide
    """
    mask = mask.bool()
    advantages = _per_token(advantages, mask)
    ratio = _masked(_log_ratio(logprobs, old_logprobs, mask).exp(), mask)
    return {
        "tokens": mask.sum().float(),
        "approx_kl": kl(old_logprobs, logprobs, mask).sum(),
        "clip_low": ((advantages < 0) & (ratio < 1 - clip_low)).sum().float(),
        "clip_high": ((advantages > 0) & (ratio > 1 + clip_high)).sum().float(),
        "ratio": ratio.sum(),
        "ratio_max": ratio.max() if ratio.numel() else ratio.sum(),
    }


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float = 2.0
) -> Tensor:
    """min(pi_old / pi_sampler, cap), (B, T), constant, 0 off the mask. It corrects for a sampler that is not
    quite the trainer's policy: multiply the loss of each token by it (truncated importance sampling). Only
    POLICY tokens have a sampler's log-prob, so the mask must be theirs."""
    return _masked(_log_ratio(old_logprobs, sampler_logprobs, mask).exp().clamp(max=cap), mask)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """GSPO's log s_i: the mean log-ratio of each sequence's masked-in tokens, (B, 1); 0 without any."""
    count = mask.bool().sum(dim=1, keepdim=True).clamp(min=1)
    return _log_ratio(logprobs, old_logprobs, mask).sum(dim=1, keepdim=True) / count


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(pi / pi_old), 0 off the mask, the old policy a constant. At most 80: exp overflows at 88, and the
    gradient 0 * inf of a clipped token would be NaN."""
    return (_masked(logprobs, mask) - _masked(old_logprobs, mask).detach()).clamp(max=80.0)


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B,) or (B, T) as constants (B, T), 0 off the mask."""
    advantages = advantages.detach()
    return _masked(advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape), mask)


# ---- reference and critic ------------------------------------------------------------------------


def kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kind: str = "k3") -> Tensor:
    """Schulman's estimators of KL(pi || ref) on tokens drawn from pi, (B, T); joschu.net/blog/kl-approx.html.

    With d = logprobs - ref_logprobs:
    k1    d                      unbiased; used in a reward. As a loss its expected gradient is 0
    k2    d^2 / 2                as a loss, the gradient of KL(pi || ref)
    k3    exp(-d) - 1 + d        unbiased, never negative; as a loss, the gradient of KL(ref || pi)
    """
    d = _masked(logprobs, mask) - _masked(ref_logprobs, mask).detach()
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        # expm1: exp(-d) - 1 would leave no digit of a small d^2 / 2
        return torch.expm1(-d.clamp(min=-80.0)) + d
    raise ValueError(f"unknown kind {kind!r}: expected k1, k2 or k3")


def value_loss(
    values: Tensor, old_values: Tensor | None, returns: Tensor, mask: Tensor, clip: float | None = None
) -> Tensor:
    """0.5 (v - R)^2 of each token, (B, T); with `clip`, 0.5 max((v - R)^2, (clip(v, v_old +- clip) - R)^2):
    a value that has moved by `clip` towards R moves no further (OpenAI baselines, ppo2). Without `clip`,
    old_values may be None."""
    values, returns = _masked(values, mask), _masked(returns, mask).detach()
    error = (values - returns).square()
    if clip is not None:
        old = _masked(old_values, mask).detach()
        error = torch.maximum(error, (values.clamp(old - clip, old + clip) - returns).square())
    return 0.5 * error
