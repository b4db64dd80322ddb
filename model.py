"""Qwen2.5, written out by hand: the decoder and its key/value cache.

    tokens (B, T) -> embedding -> L x [RMSNorm -> attention -> +, RMSNorm -> SwiGLU -> +] -> RMSNorm -> head

What distinguishes Qwen2.5 from the 2017 decoder: RMSNorm before each block instead of LayerNorm after it,
rotary positions, biases on q, k and v only, several query heads sharing one key/value head (grouped-query
attention), and a gated feed-forward layer (SwiGLU). Parameters carry the names of the published checkpoints,
so loading is a plain copy and any other tool can read what is saved.

    hidden = model(tokens)                              whole rows, causal; padding on the right needs no mask
    hidden = model(tokens, cache, rows=, counts=)       the next tokens of some rows of a KVCache
    hidden = model(tokens, positions=, attend=)         another attention, for example that of packed rows
    logits = model.head(hidden)                         float32

Hidden states are (B, T, D). The head is separate, since training and sampling need the logits of few tokens.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plumbing import folders
from plumbing.folders import CheckpointError


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

    k, v      (layers, slots, kv_heads, max_len + 1, head_dim): two halves of one tensor, kv
    lengths   (slots,) tokens stored per row

    Padding is written to the extra column, which nothing reads, so ragged chunks need no branches. In memory
    the tokens of a head lie together; on CUDA the heads of a token, as FlashAttention reads them.
    """

    def __init__(self, config: Config, slots: int, max_len: int, device="cpu", dtype=torch.float32):
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        by_token = torch.device(device).type == "cuda"
        order = (max_len + 1, 2 * heads) if by_token else (2 * heads, max_len + 1)
        kv = torch.zeros(layers, slots, *order, config.head_dim, device=device, dtype=dtype)
        self.kv = kv.transpose(2, 3) if by_token else kv
        self.k, self.v = self.kv[:, :, :heads], self.kv[:, :, heads:]
        self.lengths = torch.zeros(slots, device=device, dtype=torch.long)
        self.max_len, self.group = max_len, config.num_attention_heads // heads

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


class CacheRows:
    """Some rows R of a cache and their next T tokens: where these are stored, and what each of them sees.

    counts (R,): how many of the T tokens each row has; the rest is padding. width: at least the longest row
    afterwards. Raises ValueError for rows that outgrow the cache.
    """

    def __init__(self, cache: KVCache, rows: slice | Tensor, counts: Tensor, T: int, width: int):
        if width > cache.max_len:
            raise ValueError(f"rows of up to {width} tokens do not fit into a cache of {cache.max_len}")
        self.cache, self.rows, self.width = cache, rows, width
        starts, device = cache.lengths[rows], cache.lengths.device
        self.lengths, steps = starts + counts, torch.arange(T, device=device)
        # (R, T); padding goes to the extra column
        self.positions = torch.where(steps < counts[:, None], starts[:, None] + steps, cache.max_len)
        self.index = torch.arange(len(cache.lengths), device=device)[rows][:, None]

    @functools.cached_property
    def mask(self) -> Tensor:
        """(R, 1, queries, width): 0 where a token sees a stored one, up to itself, and -inf elsewhere."""
        unseen = torch.arange(self.width, device=self.positions.device) > self.positions[:, :, None]
        mask = torch.zeros(unseen.shape, dtype=self.cache.kv.dtype, device=unseen.device)
        mask = mask.masked_fill_(unseen, float("-inf"))
        one = unseen.shape[1] == 1  # broadcasts over the query heads
        return (mask if one else mask.repeat(1, self.cache.group, 1))[:, None]

    def store(self, layer: int, kv: Tensor) -> None:
        """Store keys and values (R, T, 2 kv_heads, head_dim)."""
        self.cache.kv[layer][self.index, :, self.positions] = kv

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of q (R, heads, T, head_dim) over the stored tokens. The query heads that share a kv head
        become rows of one product: exact, and far faster than repeating keys and values."""
        k, v = self.cache.kv[layer][self.rows, :, : self.width].chunk(2, dim=1)
        folded = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=self.mask).reshape(q.shape)

    def extend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (R, kv_heads, T, head_dim), then attend: an `Attend` of this layer."""
        self.store(layer, torch.cat([k, v], dim=1).transpose(1, 2))
        return self.attend(layer, q)


def rotary(positions: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, head_dim) for positions (B, T), in float32 (RoFormer, 2104.09864). Computed
    in each forward pass, since model.to(bfloat16) would round a buffer, and layers cost far more."""
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (half / config.head_dim)  # in this order: the published bits
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, head_dim), each pair (x[i], x[i + head_dim / 2]) rotated by its position's angle."""
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


# q (B, heads, T, head_dim), k and v (B, kv_heads, T, head_dim) -> the shape of q
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of whole rows: every token sees those up to itself.

    On a CPU bfloat16 is computed in float32, whose backward pass takes less than half the time.
    """
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        return causal(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] > k.shape[1])


class Attention(nn.Module):
    """Grouped-query attention (2305.13245): query head h reads key/value head h // group."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        return self.o_proj(attend(q, k, v).transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

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
    """Everything but the head; `model` in the names of checkpoints."""

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
        self.checkpointing = False  # recompute each block in the backward pass instead of keeping activations
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        attend: Attend = causal,
        rows: slice | Tensor | None = None,
        counts: Tensor | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T).

        Without a cache: whole rows. positions (B, T) or (1, T) give the rotary phases, by default 0 to T - 1.

        With a cache: tokens[b, :counts[b]] follow what cache row rows[b] holds, and are stored there. The
        tokens from counts[b] on are padding; ignore their output. rows: a slice of the cache's rows (no
        copy), or their indices (B,); by default the first B. counts (B,): by default T each. width: at least
        the longest row after this call; passing it avoids a device sync.
        """
        B, T = tokens.shape
        if cache is not None:
            rows = slice(0, B) if rows is None else rows
            counts = torch.full_like(cache.lengths[rows], T) if counts is None else counts
            width = int((cache.lengths[rows] + counts).max()) if width is None else width
            chunk = CacheRows(cache, rows, counts, T, width)
            positions = chunk.positions
        elif positions is None:
            positions = torch.arange(T, device=tokens.device)[None]
        cos, sin = rotary(positions, self.config)
        x = self.model.embed_tokens(tokens)
        for i, block in enumerate(self.model.layers):
            if cache is not None:  # forward(): past the hooks that gather a sharded block
                x = block.forward(x, cos, sin, functools.partial(chunk.extend, i))
            elif self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, attend)
        if cache is not None:
            cache.lengths[rows] = chunk.lengths
        return self.model.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits in float32: (..., D) -> (..., vocab_size)."""
        return F.linear(hidden, self.head_weight).float()

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (vocab_size, D)."""
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
    return folders.read_config(Path(folder) / "config.json", Config)
