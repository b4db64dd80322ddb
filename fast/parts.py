"""What the engines of a sampler share: the parts of a step, merged weights, rotary phases."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model import Qwen, rotary


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of the cache, row .. row + R - 1, and their next tokens, right-padded.

    tokens (R, T). counts: how many of them each row has. starts: tokens in the cache before them.
    """

    row: int
    tokens: Tensor
    counts: list[int]
    starts: list[int]

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + len(self.counts))

    @property
    def width(self) -> int:
        """Tokens of the longest row after this part."""
        return max(s + c for s, c in zip(self.starts, self.counts, strict=True))

    def split(self, tokens: int) -> "list[Part]":
        """The same in parts of at most `tokens` tokens, or of one row."""
        step = max(1, tokens // self.tokens.shape[1])
        cuts = [slice(i, i + step) for i in range(0, len(self.counts), step)]
        return [Part(self.row + c.start, self.tokens[c], self.counts[c], self.starts[c]) for c in cuts]


def merged_qkv(attention) -> tuple[Tensor, Tensor]:
    """Weight and bias of one product for q, k and v."""
    heads = [(attention.q_proj, attention.heads), (attention.k_proj, attention.kv_heads)]
    parts = [[pairs_together(x, n) for x in (linear.weight, linear.bias)] for linear, n in heads]
    parts.append([attention.v_proj.weight, attention.v_proj.bias])
    return tuple(torch.cat(x) for x in zip(*parts, strict=True))


def pairs_together(x: Tensor, heads: int) -> Tensor:
    """The output channels of each head, with rotary pairs (i, i + head_dim / 2) as neighbours. Done to both q
    and k, it leaves every attention score as it is."""
    return x.view(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def rotary_phases(length: int, model: Qwen) -> Tensor:
    """exp(i angle) of every position and channel pair, (length, head_dim / 2)."""
    cos, sin = rotary(torch.arange(length)[None], model.config)
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, 0, :, :half], sin[0, 0, :, :half])


def cache_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the engine for a model with this weight: its own, but float32 on a CPU without bfloat16
    instructions, where emulated products reach 30 GFLOP/s and float32 160."""
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        return weight.dtype
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if weight.dtype == torch.bfloat16 and native else torch.float32


def slot_bytes(model: Qwen, max_len: int) -> int:
    """Bytes of one slot: its cache, its uniforms, and the logits and probabilities of a draw."""
    config, weight = model.config, model.model.embed_tokens.weight
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cached *= cache_dtype(weight).itemsize
    # logits and probabilities; on CUDA rounded logits too, and all of it twice: in graphs and outside
    drawing = (20 if weight.is_cuda else 8) * config.vocab_size
    return (cached + 8) * (max_len + 1) + drawing


def of_similar_length(slots: list) -> list[list]:
    """Slots of a sampler in groups that need little padding. Fresh prompts, apart from tool results, need no
    attention mask."""
    groups: list[list] = []
    for slot in sorted(slots, key=lambda slot: (slot.length > 0, len(slot.unfed))):
        first = groups[-1][0] if groups else slot
        same = (first.length > 0) == (slot.length > 0)
        if not groups or not same or len(slot.unfed) > 1.25 * len(first.unfed) + 8:
            groups.append([])
        groups[-1].append(slot)
    return groups
