"""FlashAttention-2 (2307.08691) of ragged rows laid end to end, on CUDA."""

from typing import NamedTuple

import torch
from torch import Tensor


class Ragged(NamedTuple):
    """Where R rows begin among queries and keys. Row r has the queries q[begins_q[r] : begins_q[r + 1]]. Its
    keys begin at begins_k[r]: used[r] of them (only without gradients), or all up to begins_k[r + 1]."""

    begins_q: Tensor  # (R + 1,) int32
    begins_k: Tensor  # (R + 1,) int32
    longest_q: int
    longest_k: int
    used: Tensor | None = None  # (R,) int32


def flash_fits(x: Tensor, head_dim: int) -> bool:
    """Whether flash_attention takes queries like x: below float32, on an NVIDIA GPU from Ampere on."""
    sizes = head_dim % 8 == 0 and head_dim <= 256
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and sizes) or torch.version.hip:
        return False
    built = torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.get_device_capability(x.device) >= (8, 0)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, rows: Ragged) -> Tensor:
    """Causal attention (N, heads, d) of rows laid end to end: q (N, heads, d); k, v (M, kv_heads, d).

    The last query of a row sees all its keys, each one before it one less. The kernel is that of
    torch.nn.attention.varlen, whose own options change from one torch to the next.
    """
    lengths = rows.begins_q, rows.begins_k, rows.longest_q, rows.longest_k
    dropout, is_causal, debug = 0.0, True, False
    kernel = torch.ops.aten._flash_attention_forward
    return kernel(q, k, v, *lengths, dropout, is_causal, debug, seqused_k=rows.used)[0]
