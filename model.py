"""Qwen2.5, written out by hand: the decoder, its key/value cache, and its checkpoint folders.

    tokens (B, T) -> embedding -> L x [RMSNorm -> attention -> +, RMSNorm -> SwiGLU -> +] -> RMSNorm -> head

What distinguishes Qwen2.5 from the 2017 decoder: RMSNorm before each block instead of LayerNorm after it,
rotary positions, biases on q, k and v only, several query heads sharing one key/value head (grouped-query
attention), and a gated feed-forward layer (SwiGLU). Parameters carry the names of the published checkpoints,
so loading is a plain copy and any other tool can read what is saved.

Three ways to call the model:

    model(tokens)                              whole rows, causal; rows padded on the right need no mask,
                                               because nothing looks to its right
    model(tokens, lengths=)                    the same packed: no padding is computed, and what neighbouring
                                               rows begin with alike only once; how training calls it
    model(tokens, cache, rows=, counts=)       the next tokens of some rows of a KVCache, any number each

The first and the last return hidden states (B, T, D); packed ones are (N, D), with where each token's is.
model.head(hidden) returns float32 logits. They are separate because training needs logits at few positions
and sampling at the last one only.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plumbing import folders
from plumbing.folders import CheckpointError

SAVES = 0.8  # packed rows are computed packed if they are at most this share of the padded ones


@dataclass(frozen=True)
class Config:
    """The shape of a model, under the names of a checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    # The other entries of config.json, which other tools read: kept so that save can write them back.
    extra: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_json(self) -> dict:
        """The entries of config.json, but for the dtype."""
        entries = asdict(self)
        fixed = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
        return entries.pop("extra") | entries | fixed | {"use_sliding_window": False}


# The embedded model: small enough to train on two CPU cores in minutes, 0.90M parameters.
TINY = Config(
    vocab_size=896,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    max_position_embeddings=1024,
)


class KVCache:
    """Keys and values of `slots` sequences of up to `max_len` tokens, allocated once.

    k, v: (layers, slots, kv_heads, max_len + 1, head_dim); lengths: (slots,) tokens stored per row.
    The extra column is where padding is written, so that ragged chunks need no branches; nothing reads it.
    Both are views of one tensor, kv (layers, slots, 2 kv_heads, ...): storing and copying are one step. In
    memory a head's tokens lie together; on CUDA a token's heads, the order that flash_attention reads.
    """

    def __init__(self, config: Config, slots: int, max_len: int, device="cpu", dtype=torch.float32):
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        by_token = torch.device(device).type == "cuda"
        order = (max_len + 1, 2 * heads) if by_token else (2 * heads, max_len + 1)
        kv = torch.zeros(layers, slots, *order, config.head_dim, device=device, dtype=dtype)
        self.kv = kv.transpose(2, 3) if by_token else kv
        self.k, self.v = self.kv[:, :, :heads], self.kv[:, :, heads:]
        self.lengths = torch.zeros(slots, device=device, dtype=torch.long)
        self.max_len = max_len

    def copy_row(self, src: int, dst: int, length: int) -> None:
        """Copy the first `length` tokens of row `src` into row `dst`: how a group shares its prompt."""
        self.kv[:, dst, :, :length] = self.kv[:, src, :, :length]
        self.lengths[dst] = length

    def swap_rows(self, a: int, b: int, length: int) -> None:
        """Exchange rows a and b, whose longer one holds `length` tokens."""
        kept = self.kv[:, a, :, :length].clone()
        self.kv[:, a, :, :length] = self.kv[:, b, :, :length]
        self.kv[:, b, :, :length] = kept
        self.lengths[[a, b]] = self.lengths[[b, a]]


def rotary(positions: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables (B, 1, T, head_dim) for positions (B, T), in float32 (RoFormer, 2104.09864).

    Computed anew each forward: at any model size it costs nothing beside the layers, and a buffer would be
    rounded by model.to(bfloat16).
    """
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (half / config.head_dim)  # in this order: the published bits
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim / 2]) of x (B, heads, T, head_dim) by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, normalised in float32 (1910.07467). On CUDA in one kernel, which rounds once."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


@functools.cache
def mkl_is_slow() -> bool:
    """Whether F.linear, whose float32 products are MKL's, leaves much of this CPU's speed unused: on AMD with
    AVX-512 (Zen 5: 65-95 GFLOP/s, oneDNN 175-220). On Intel oneDNN is a tenth slower."""
    return amd_with_onednn() and torch.cpu.get_capabilities().get("avx512_f", False)


def amd_with_onednn() -> bool:
    """Whether this is an AMD processor, and torch was built with oneDNN."""
    return torch.backends.mkldnn.is_available() and "AMD" in torch.cpu.get_capabilities().get("cpu_name", "")


class OneDNNLinear(torch.autograd.Function):
    """x @ weight.T + bias as F.linear gives it, float32 on a CPU, with oneDNN's products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        product, (x_needed, weight_needed, _) = torch.ops.mkldnn._linear_pointwise, ctx.needs_input_grad
        rows, by_rows = x.reshape(-1, x.shape[-1]), by_y.reshape(-1, by_y.shape[-1])
        by_x = product(by_y, weight.t(), None, "none", [], "") if x_needed else None
        by_weight = product(by_rows.t(), rows.t(), None, "none", [], "") if weight_needed else None
        return by_x, by_weight, by_rows.sum(0) if ctx.has_bias else None


class Linear(nn.Linear):
    """nn.Linear through the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() and mkl_is_slow():
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, heads, T, d), k, v (B, kv_heads, T, d) -> as q


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of whole rows: every token sees those up to itself. On a CPU in float32, whose backward pass
    is more than twice as fast as bfloat16's (8 heads of 32, up to 256 tokens: 1.9 and 4.4 ms)."""
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        return causal(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] > k.shape[1])


def flash_fits(x: Tensor, head_dim: int) -> bool:
    """Whether flash_attention takes queries of x's kind: below float32, on an NVIDIA GPU from Ampere on."""
    sizes = head_dim % 8 == 0 and head_dim <= 256
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and sizes) or torch.version.hip:
        return False
    built = torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.get_device_capability(x.device) >= (8, 0)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    begins_q: Tensor,
    begins_k: Tensor,
    longest_q: int,
    longest_k: int,
    used: Tensor | None = None,
) -> Tensor:
    """Causal attention of R rows laid end to end, (N, heads, d); FlashAttention-2 (2307.08691).

    q (N, heads, d); k, v (M, kv_heads, d). Row r asks with q[begins_q[r] : begins_q[r + 1]] and sees what k
    and v hold from begins_k[r] on: used[r] tokens (only without gradients), or all up to begins_k[r + 1].
    Its last query sees them all, each one before it one less. begins (R + 1,), used (R,): int32. The kernel
    is that of torch.nn.attention.varlen, whose own options change from one torch to the next.
    """
    lengths = begins_q, begins_k, longest_q, longest_k
    dropout, is_causal, debug = 0.0, True, False
    kernel = torch.ops.aten._flash_attention_forward
    return kernel(q, k, v, *lengths, dropout, is_causal, debug, seqused_k=used)[0]


class Packing:
    """Ragged rows laid end to end as one row of N tokens, of which layers compute no padding.

    tokens (B, T); of row b the first lengths[b] count, at least one. Neighbouring rows that begin alike, as
    the samples of one prompt do, form a family: its common beginning is there once, followed by the rest of
    each row. That is exact, because causal layers give equal beginnings equal results; only attention,
    which mixes positions, sees every row whole, one after the other.

    index (N,): where in tokens.flatten() each token comes from; positions (N,): its place in its row;
    place (B, T): where in the N tokens each token went, 0 for padding.
    """

    def __init__(self, tokens: Tensor, lengths: list[int]):
        B, T = tokens.shape
        if len(lengths) != B or not all(0 < n <= T for n in lengths):
            raise ValueError(f"lengths {lengths} of {B} rows of {T} tokens; expected {B} from 1 to {T}")
        self.families = (
            families(tokens, lengths) if B else []
        )  # (length of the common beginning, lengths of the rows)
        self.sizes: list[int] = []  # of the pieces: of each family its beginning, and the rest of each row
        index, positions, place = [], [], torch.zeros(B, T, dtype=torch.long)
        row = end = 0
        for shared, rows in self.families:
            place[row : row + len(rows), :shared] = torch.arange(end, end + shared)
            for b, first, last in [(row, 0, shared)] + [(row + i, shared, n) for i, n in enumerate(rows)]:
                positions.append(torch.arange(first, last))
                index.append(positions[-1] + b * T)
                place[b, first:last] = torch.arange(end, end + last - first)
                self.sizes.append(last - first)
                end += last - first
            row += len(rows)
        device = tokens.device
        none = [torch.zeros(0, dtype=torch.long)]
        self.index = torch.cat(none + index).to(device)
        self.positions = torch.cat(none + positions).to(device)
        self.place = place.to(device)

    @functools.cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For flash_attention, which takes all rows in one call: which of the N tokens each row sees, row
        after row, where its queries and these begin, and the longest of both. A family's first row asks for
        its common beginning too."""
        asking, seen, end = [], [], 0
        for shared, rows in self.families:
            beginning, end = torch.arange(end, end + shared), end + shared
            for i, length in enumerate(rows):
                asking.append(length if i == 0 else length - shared)
                seen += [beginning, torch.arange(end, end + length - shared)]
                end += length - shared
        lengths = [length for _, rows in self.families for length in rows]
        device = self.index.device
        begins = [F.pad(torch.tensor(n).cumsum(0), (1, 0)).int().to(device) for n in (asking, lengths)]
        # told of 1 the kernel would take every row to ask once, and some may ask for nothing
        return torch.cat(seen).to(device), *begins, max(2, *asking), max(lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of every row by itself, on and from (1, heads, N, head_dim)."""
        if flash_fits(q, q.shape[-1]):
            return self._flash(q, k, v)
        pieces = list(zip(*(x.split(self.sizes, dim=2) for x in (q, k, v)), strict=True))
        results = []
        for shared, rows in self.families:
            beginning, *rest = pieces[: 1 + len(rows)]
            pieces = pieces[1 + len(rows) :]
            for i, piece in enumerate(rest):
                whole = [torch.cat(pair, dim=2) for pair in zip(beginning, piece, strict=True)]
                known, new = causal(*(whole if shared else piece)).split((shared, piece[0].shape[2]), dim=2)
                results += [known, new] if i == 0 else [new]
        return torch.cat(results, dim=2)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen, *rows = self.rows
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        if len(seen) > len(q):  # what rows share is there once; float32, in which its gradients are added up
            k, v = (x.float().index_select(0, seen).to(x.dtype) for x in (k, v))
        return flash_attention(q, k, v, *rows).transpose(0, 1)[None]


def families(tokens: Tensor, lengths: list[int]) -> list[tuple[int, list[int]]]:
    """Neighbouring rows with the number of tokens that they begin with alike: (shared, their lengths).

    A row joins the one before it unless less would be saved. [a b c], [a b d], [a x], of which the first two
    share 2 and all share 1: ((2, [3, 3]), (0, [2])), since 2 saved are not fewer than 1 + 1.
    """
    alike = (tokens[1:] == tokens[:-1]).long().cumprod(dim=1).sum(dim=1).tolist() + [0]
    found = [(lengths[0], [lengths[0]])]
    for i, length in enumerate(lengths[1:]):
        shared, rows = found[-1]
        common = min(shared, alike[i], length)
        better_next = len(rows) == 1 and min(alike[i + 1], length) > common
        if common and common * len(rows) > shared * (len(rows) - 1) and not better_next:
            found[-1] = (common, [*rows, length])
        else:
            found.append((length, [length]))
    return [(shared if len(rows) > 1 else 0, rows) for shared, rows in found]


class Attention(nn.Module):
    """Grouped-query attention (2305.13245): query head h reads key/value head h // group."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, self.kv_heads * self.head_dim
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, kv_width)
        self.v_proj = Linear(width, kv_width)
        self.o_proj = Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        return self.o_proj(attend(q, k, v).transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """What the checkpoints call `model`: everything but the head."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen(nn.Module):
    """The decoder with its head. `config` is its shape; a tied head has no parameter of its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # whether training computes each block again instead of keeping its inside
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        lengths: list[int] | None = None,
        rows: slice | Tensor | None = None,
        counts: Tensor | None = None,
        width: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) of tokens (B, T).

        Without a cache: whole rows, causal. With lengths, of row b the first lengths[b] tokens, at least one,
        packed: hidden states (N, D), and place (B, T), which of them is each token's (see Packing). With a
        cache: tokens[b, :counts[b]] follow what cache row rows[b] holds and are stored there; what lies
        beyond counts[b] is padding and its output means nothing. rows: a slice of the cache's rows (no copy)
        or their indices (B,); all rows by default. counts: (B,), T each by default. width: at least the
        longest row after this call; given, it saves reading the lengths back from the device.
        """
        if cache is None:
            x, place = (self._whole_rows(tokens), None) if lengths is None else self._packed(tokens, lengths)
            x = self.model.norm(x)  # and no view of it is returned: FSDP2 warns of those
            x = x if len(tokens) else x[:0].clone()
            return x if lengths is None else (x, place)
        x = self.model.embed_tokens(tokens)

        B, T = tokens.shape
        rows = slice(0, B) if rows is None else rows
        start = cache.lengths[rows]
        counts = torch.full_like(start, T) if counts is None else counts
        end = start + counts
        width = int(end.max()) if width is None else width
        if width > cache.max_len:
            raise ValueError(f"rows of up to {width} tokens do not fit into a cache of {cache.max_len}")
        steps = torch.arange(T, device=tokens.device)
        positions = start[:, None] + steps
        cos, sin = rotary(positions, self.config)
        places = torch.where(steps < counts[:, None], positions, cache.max_len)  # padding: the extra column
        seen = torch.arange(width, device=tokens.device) <= positions[:, :, None]  # (B, T, width)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill_(~seen, float("-inf"))
        mask = mask[:, None] if T == 1 else mask.repeat(1, group, 1)[:, None]
        index = (
            torch.arange(cache.lengths.shape[0], device=tokens.device)[rows]
            if isinstance(rows, slice)
            else rows
        )

        for i, block in enumerate(self.model.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, stored=cache.kv[i]) -> Tensor:
                stored[index[:, None], :, places] = torch.cat([k, v], dim=1).transpose(1, 2)
                # The query heads that share a kv head become rows of one product: exact, and far faster
                # than repeating keys and values.
                folded = q.reshape(B, k.shape[1], group * T, -1)
                k, v = stored[rows, :, :width].chunk(2, dim=1)
                return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(q.shape)

            x = block.forward(x, cos, sin, attend)  # past the hooks that gather a sharded block
        cache.lengths[rows] = end
        return self.model.norm(x)

    def _whole_rows(self, tokens: Tensor) -> Tensor:
        """Before the last norm. Without rows one is made up, so that the result, of which nothing is then
        taken, depends on the weights: a rank without data takes part in what the others do."""
        some = tokens if len(tokens) else tokens.new_zeros(1, tokens.shape[1])
        return self._blocks(some, torch.arange(some.shape[1], device=tokens.device), causal)

    def _packed(self, tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Where packing would save little, or nothing is there to pack, whole rows after all: one attention
        for all of them is faster than one for each. flash_attention is one for all of them packed."""
        packing, longest = Packing(tokens, lengths), max(lengths, default=1)
        one_call = flash_fits(self.model.embed_tokens.weight, self.config.head_dim) and lengths
        if len(packing.index) >= SAVES * len(tokens) * longest and not one_call:
            place = torch.arange(len(tokens) * longest, device=tokens.device).view(len(tokens), longest)
            x = self._whole_rows(tokens[:, :longest])
            return x.flatten(0, 1), F.pad(place, (0, tokens.shape[1] - longest))
        x = self._blocks(tokens.flatten()[packing.index][None], packing.positions, packing.attend)
        return x[0], packing.place

    def _blocks(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T) at positions (T,), before the last norm."""
        x = self.model.embed_tokens(tokens)
        cos, sin = rotary(positions[None], self.config)
        for block in self.model.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, attend)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits in float32: (..., D) -> (..., vocab_size)."""
        return F.linear(hidden, self.head_weight).float()

    @property
    def packs(self) -> bool:
        """Whether forward(tokens, lengths=) and head_weight stand for forward(tokens) and head(): not where a
        subclass or an instance has others."""
        ours = type(self).forward is Qwen.forward and type(self).head is Qwen.head
        return ours and not {"forward", "head"} & set(vars(self))

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, D): all there is to the head."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def init_weights(self, seed: int, embedding_std=0.1, output_scale=0.05) -> "Qwen":
        """Random weights for a model trained from nothing; the order of parameters fixes the numbers.

        Input projections get std 1/sqrt(fan_in); what is added to the residual stream starts near zero
        (output_scale/sqrt(fan_in)). At width 128 this learns much faster than 0.02 everywhere.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                p.fill_(1.0 if "norm" in name else 0.0)
                continue
            scale = output_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            std = embedding_std if "embed_tokens" in name else scale / p.shape[1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std)
        return self


# -- checkpoint folders ----------------------------------------------------------------------------


def load(folder: str | os.PathLike, device="cpu", dtype: torch.dtype | None = None) -> Qwen:
    """A model from a checkpoint folder, in one file or in shards; dtype None keeps the stored one.

    The weights are memory-mapped: a tensor that needs no conversion is the file itself, copied page by page
    where it is written to. Raises CheckpointError for a folder that does not fit, mostly before a weight is
    read.
    """
    with torch.device("meta"):
        model = Qwen(read_config(folder))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    # Some tied checkpoints store the head a second time.
    copy = "lm_head.weight" if model.lm_head is None else ""
    expected = shapes | ({copy: shapes["model.embed_tokens.weight"]} if copy else {})
    weights = folders.read_tensors(Path(folder), expected, torch.device(device), dtype, optional=copy)
    head = weights.pop(copy, None)
    if head is not None and not head.equal(weights["model.embed_tokens.weight"]):
        raise CheckpointError(f"{folder}: lm_head.weight is not the embedding, but config.json ties them")
    model.load_state_dict(weights, assign=True)
    return model


def save(model: Qwen, folder: str | os.PathLike, tokenizer=None) -> None:
    """Write a checkpoint folder that other tools load: config.json, weights, tokenizer files if one is given.

    An existing checkpoint is replaced as a whole; without a tokenizer its tokenizer files stay. Raises
    FileExistsError for a folder that holds something else.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = model.config.to_json() | {"torch_dtype": dtype}
    folders.write(folder, config, dict(model.named_parameters()), tokenizer)


def read_config(folder: str | os.PathLike) -> Config:
    """The shape in folder/config.json. Raises CheckpointError for anything but a Qwen2 decoder as above."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a checkpoint folder with Qwen2 weights")
    raw = folders.read_json(path)
    # Published folders have rope_theta at the top level, transformers 5 writes it inside rope_parameters.
    ropes = [raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}]
    raw["rope_theta"] = (ropes[0] | ropes[1]).get("rope_theta", raw.get("rope_theta", 10_000.0))
    scaled = [rope for rope in ropes if {rope.get("rope_type"), rope.get("type")} - {None, "default"}]
    # YaRN is refused too: it changes short contexts as well.
    raw["rope_scaling"] = scaled[0] if scaled else None
    implemented = {"model_type": ["qwen2"], "hidden_act": ["silu", None], "use_sliding_window": [False, None]}
    implemented |= {"rope_scaling": [None], "quantization_config": [None]}
    for key, values in implemented.items():
        if raw.get(key) not in values:
            found, wanted = json.dumps(raw.get(key)), json.dumps(values[0])
            raise CheckpointError(f"{path}: {key} is {found}, which is not implemented; expected {wanted}")
    if raw.get("dual_chunk_attention_config"):
        note = "dual-chunk attention is not implemented; within one chunk plain attention is the same"
        print(f"{path}: {note}", file=sys.stderr)
    names = {f.name for f in fields(Config)} - {"extra"}
    extra = {k: v for k, v in raw.items() if k not in names | {"rope_parameters", "dtype", "layer_types"}}
    try:
        config = Config(**{k: v for k, v in raw.items() if k in names}, extra=extra)
    except TypeError as error:
        raise CheckpointError(f"{path}: {str(error).split('.__init__() ')[-1]}") from None
    check_values(config, path)
    width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head_dim = raw.get("head_dim") or config.head_dim
    if heads % kv_heads or head_dim * heads != width:
        raise CheckpointError(f"{path}: {width=}, {heads=}, {kv_heads=}, {head_dim=} do not fit together")
    return config


def check_values(config: Config, path: Path) -> None:
    """Raise CheckpointError unless sizes are numbers above 0 and switches are true or false."""
    kinds = {int: ((int,), "a whole number above 0"), float: ((int, float), "a number above 0")}
    for f in fields(Config):
        value = getattr(config, f.name)
        types, expected = kinds.get(f.type, ((f.type,), "true or false"))
        if type(value) not in types or f.type in kinds and not value > 0:
            raise CheckpointError(f"{path}: {f.name} is {json.dumps(value)}; expected {expected}")
