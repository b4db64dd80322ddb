"""The decoder laid out for sampling: the same function as model.py's, computed the fastest way found here.

A Sampler asks for one thing: feed these tokens into these rows of the cache, give the hidden state at each
row's last one. Three engines do that, held together by tests (log-probs within 1e-4, greedy tokens equal):

    Plain     model.py's own forward, part by part
    Packed    for CPUs: weights merged and laid out anew, parts together through the layers
    Flash     for CUDA below float32: all parts end to end, flash attention on the cache; Graphs replays its
              decode step as a CUDA graph

What Packed does (BENCHMARKS.md says what it gave):

    weights laid out once as this CPU's faster library reads them: transposed for MKL, blocked for oneDNN
    q, k, v in one product; the norms' gains inside the weights that follow them
    rotary positions as one complex product: q's and k's channels are reordered so that pairs lie together
    residual additions inside the products that precede them
    decoding rows and waiting chunks (prompts, tool results) share products; only attention is split
    past the last attention only the rows' last tokens are computed
    many prompts in passes whose activations stay in the cache (128 prompts of 64 tokens: 0.53 -> 0.46 s)
"""

import torch
from torch import Tensor

from fast.cpu import Packed
from fast.cuda import Flash
from fast.parts import Part
from model import KVCache, Qwen, flash_fits


def engine(model: Qwen, cache: KVCache) -> "Plain | Packed | Flash":
    """The fastest engine for the device that the model is on; float64, an oracle's dtype, stays plain."""
    if cache.k.device.type == "cpu" and cache.k.dtype != torch.float64:
        return Packed(model, cache)
    return (Flash if flash_fits(cache.k, model.config.head_dim) else Plain)(model, cache)


class Plain:
    """model.py's forward, one call per part."""

    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache = model, cache

    def refresh(self) -> None:
        """Nothing to do: the weights are read where they are."""

    def feed(self, parts: list[Part]) -> Tensor:
        """Hidden states (rows of all parts, D) at each row's last token; the tokens join the cache."""
        return torch.cat([self._feed(part) for part in parts])

    def _feed(self, part: Part) -> Tensor:
        counts = torch.tensor(part.counts, device=part.tokens.device)
        options = {"rows": part.rows, "counts": counts, "width": part.width}
        hidden = self.model.forward(part.tokens, self.cache, **options)  # without a sharded model's hooks
        return hidden[torch.arange(len(counts), device=hidden.device), counts - 1]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.model.head(hidden)
