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

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import KVCache, Qwen, amd_with_onednn, flash_attention, flash_fits, rotary

__all__ = ["Flash", "Graphs", "Packed", "Part", "Plain", "engine"]


@dataclass(frozen=True)
class Part:
    """Some neighbouring rows of the cache and their next tokens, right-padded: rows row .. row + R - 1.

    tokens: (R, T); counts: how many of them belong to each row; starts: tokens in the cache before them.
    """

    row: int
    tokens: Tensor
    counts: list[int]
    starts: list[int]

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + len(self.counts))

    def split(self, tokens: int) -> "list[Part]":
        """The same in parts of at most so many tokens, or of one row."""
        step = max(1, tokens // self.tokens.shape[1])
        cuts = [slice(i, i + step) for i in range(0, len(self.counts), step)]
        return [Part(self.row + c.start, self.tokens[c], self.counts[c], self.starts[c]) for c in cuts]

    @property
    def width(self) -> int:
        """Tokens of the longest row after this part."""
        return max(s + c for s, c in zip(self.starts, self.counts, strict=True))


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


# -- CUDA ------------------------------------------------------------------------------------------


class Flash:
    """The fast CUDA engine. What all parts hold lies end to end, without padding or masks, and flash
    attention reads each row's keys where they are in the cache.

    Weights are read where the optimiser updates them; only q, k and v are copied, into one product whose
    channels are reordered as Packed's are (so a cache belongs to one engine).
    """

    @torch.no_grad()
    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache = model, cache
        self.turns = turns(cache.max_len + 1, model).to(cache.k.device)
        self.qkv = [merged(block.self_attn) for block in model.model.layers]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the present q, k and v, in place."""
        for block, old in zip(self.model.model.layers, self.qkv, strict=True):
            for x, new in zip(old, merged(block.self_attn), strict=True):
                x.copy_(new)

    @torch.no_grad()
    def feed(self, parts: list[Part]) -> Tensor:
        """Hidden states (rows of all parts, D) at each row's last token, not yet through the last norm."""
        rows, starts, counts, places, size = [], [], [], [], 0
        for part in parts:
            rows += range(part.row, part.row + len(part.counts))
            starts += part.starts
            counts += part.counts
            places += range(size, size + part.tokens.numel(), part.tokens.shape[1])
            size += part.tokens.numel()
        longest, total = max(counts), sum(counts)
        tokens = torch.cat([part.tokens.flatten() for part in parts])
        rows, starts, counts, places = torch.tensor([rows, starts, counts, places], device=tokens.device)
        ends = counts.cumsum(0)
        owners = torch.arange(len(rows), device=tokens.device).repeat_interleave(counts, output_size=total)
        steps = torch.arange(total, device=tokens.device) - (ends - counts)[owners]
        tokens, positions = tokens[places[owners] + steps], starts[owners] + steps
        begins = F.pad(ends, (1, 0)).int()
        hidden = self._layers(tokens, rows[owners], positions, rows, starts + counts, begins, longest)
        self.cache.lengths[rows] = starts + counts
        return hidden[ends - 1]

    @torch.no_grad()
    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        """The same after one more token (R,) of each of the rows 0 .. R - 1 that is active (R,), without a
        word from or to the host. The others stay as they are, and their hidden states mean nothing."""
        rows = torch.arange(len(tokens), device=tokens.device)
        lengths = self.cache.lengths[: len(tokens)]
        positions = torch.where(active, lengths, self.cache.max_len)
        seen = torch.where(active, lengths + 1, 1)  # of the others one, to read little for nothing
        begins = torch.arange(len(tokens) + 1, device=tokens.device, dtype=torch.int32)
        hidden = self._layers(tokens, rows, positions, rows, seen, begins, 1)
        lengths += active
        return hidden

    def _layers(
        self,
        tokens: Tensor,
        places: Tensor,
        positions: Tensor,
        rows: Tensor,
        seen: Tensor,
        begins: Tensor,
        longest: int,
    ) -> Tensor:
        """tokens, their rows of the cache and their positions there: (N,). The R rows asking, how many tokens
        each then sees, and where its tokens begin: (R,), (R,), (R + 1,); longest: the most tokens of one."""
        config = self.model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = self.cache.max_len + 1
        begins_k, seen = F.pad(rows * width, (0, 1)).int(), seen.int()
        turns = self.turns[positions].unsqueeze(1)
        x = F.embedding(tokens, self.model.model.embed_tokens.weight)
        for block, qkv, stored in zip(self.model.model.layers, self.qkv, self.cache.kv, strict=True):
            h = F.linear(block.input_layernorm(x), *qkv).view(len(x), -1, config.head_dim)
            pairs = h[:, : heads + kv_heads].float().unflatten(-1, (-1, 2))
            h[:, : heads + kv_heads] = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)
            stored[places, :, positions] = h[:, heads:]
            k, v = stored.transpose(1, 2).flatten(0, 1).split(kv_heads, dim=1)  # no copy: the cache's order
            y = flash_attention(h[:, :heads], k, v, begins, begins_k, longest, width, seen).flatten(1)
            x.addmm_(y, block.self_attn.o_proj.weight.t())
            h, mlp = block.post_attention_layernorm(x), block.mlp
            h = F.silu(F.linear(h, mlp.gate_proj.weight), inplace=True).mul_(F.linear(h, mlp.up_proj.weight))
            x.addmm_(h, mlp.down_proj.weight.t())
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.model.head(self.model.model.norm(hidden))


def merged(attention) -> tuple[Tensor, Tensor]:
    """Weight and bias of one product for q, k and v."""
    heads = [(attention.q_proj, attention.heads), (attention.k_proj, attention.kv_heads)]
    parts = [[pairs_together(x, n) for x in (linear.weight, linear.bias)] for linear, n in heads]
    parts.append([attention.v_proj.weight, attention.v_proj.bias])
    return tuple(torch.cat(x) for x in zip(*parts, strict=True))


def pairs_together(x: Tensor, heads: int) -> Tensor:
    """Reorder the output channels of each head so that the pairs (i, i + head_dim / 2), which rotary
    positions turn, become neighbours. Done to q and to k it leaves every attention score as it is."""
    return x.view(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def turns(length: int, model: Qwen) -> Tensor:
    """exp(i angle) of every position and channel pair, (length, head_dim / 2)."""
    cos, sin = rotary(torch.arange(length)[None], model.config)
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, 0, :, :half], sin[0, 0, :, :half])


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all samplers: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


class Graphs:
    """A step over the first rows of a sampler as CUDA graphs, one per bucket of rows.

    A graph replays kernels on fixed addresses: weights are read where the optimiser updates them in place, so
    graphs stay valid until keep_for() is told of other places. What a step works on must outlive the graph,
    too, or be made by the step itself. They live as long as their sampler, in training for one rollout.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self.count = torch.zeros((), dtype=torch.long, device=device)
        self.pool = torch.cuda.graph_pool_handle()
        self.places: list[int] = []

    def keep_for(self, model: Qwen) -> None:
        """Forget the graphs if the model's weights lie elsewhere than before."""
        before, self.places = self.places, [p.data_ptr() for p in model.parameters()]
        if self.places != before:
            self.graphs.clear()

    @staticmethod
    def bucket(count: int) -> int:
        """1, 2, 3, 4, 6, 8, 12, 16, 24, ...: the first of them that is not below count.

        >>> [Graphs.bucket(n) for n in (1, 3, 5, 7, 9, 13, 100, 129)]
        [1, 3, 6, 8, 12, 16, 128, 192]
        """
        unit = 1 << max(0, count.bit_length() - 2)
        return -(-count // unit) * unit

    def replay(self, count: int, step: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """What step(active) gives for the first `count` rows, valid until the next call. active (rows,) bool:
        the step computes as many rows, and changes nothing of those that are not active."""
        rows = min(self.bucket(count), self.rows)
        if rows not in self.graphs:
            self.graphs[rows] = self._capture(rows, step)
        graph, results = self.graphs[rows]
        self.count.fill_(count)
        graph.replay()
        return [x[:count] for x in results]

    def _capture(self, rows: int, step) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        def run() -> tuple[Tensor, ...]:
            return step(torch.arange(rows, device=self.count.device) < self.count)

        self.count.zero_()  # no row is active in the first run, in which libraries allocate their workspaces
        here, side = torch.cuda.current_stream(self.count.device), capture_stream(self.count.device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            run()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile, NCCL's watchdog say, does not end the capture
        options = {"pool": self.pool, "stream": side, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **options):
            results = run()
        return graph, results


# -- the CPU's layout ------------------------------------------------------------------------------

BEYOND_CACHE = 2**21  # elements of a weight: 8 MiB in float32, four times an L2 cache
PASS = 1024  # tokens that go through the layers together: 1 MiB of activations at width 256


def cache_dtype(weight: Tensor) -> torch.dtype:
    """What the engine of a model with this weight computes in: its own dtype, but float32 on a CPU without
    bfloat16 instructions (emulated products reach 30 GFLOP/s, float32 160, and it holds every bfloat16)."""
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        return weight.dtype
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if weight.dtype == torch.bfloat16 and native else torch.float32


def onednn_is_faster(weight: Tensor) -> bool:
    """Below float32 always. On AMD, MKL leaves half of the speed unused with AVX-512 (Zen 5: 65-95 GFLOP/s,
    oneDNN 175-220), and without it where few rows meet large weights (Zen 3, 0.5B shape, 8 rows: 17, oneDNN
    24; 32 rows: 43, 49; weights that fit into the cache: 5-8 % the other way). On Intel a product with a
    transposed weight is faster where the weight comes from the cache (256 x 1024, 8 rows: 50 against 76 us)
    and slower where it comes from memory (896 x 4864: 3.1 against 1.6 ms; 32 rows: 3.3 both)."""
    large = weight.numel() >= BEYOND_CACHE and torch.backends.mkldnn.is_available()
    return weight.dtype == torch.bfloat16 or amd_with_onednn() or large


class Product:
    """x @ weight.T + bias for a weight (out, in) that stays the same, in this CPU's fastest layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.bias = bias
        self.onednn = onednn_is_faster(weight)
        if self.onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), with `add` (N, out) added where given."""
        if self.onednn:
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return y if add is None else y.add_(add)
        add = self.bias if add is None else add
        return torch.mm(x, self.weight) if add is None else torch.addmm(add, x, self.weight)


class Layer:
    """The weights of one block: norm gains folded into the products after them, q, k and v merged."""

    def __init__(self, block, dtype: torch.dtype):
        attention, mlp = block.self_attn, block.mlp
        gain, self.gain1 = _gain(block.input_layernorm.weight, dtype)
        weight, bias = merged(attention)
        self.qkv = Product(weight.to(dtype) * gain, bias.to(dtype))
        self.out = Product(attention.o_proj.weight.to(dtype))
        gain, self.gain2 = _gain(block.post_attention_layernorm.weight, dtype)
        self.gate = Product(mlp.gate_proj.weight.to(dtype) * gain)
        self.up = Product(mlp.up_proj.weight.to(dtype) * gain)
        self.down = Product(mlp.down_proj.weight.to(dtype))


def _gain(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A norm's gain as (factor for the next weight, factor for the activations): bfloat16 weights would be
    rounded by it, so there it stays outside."""
    whole = weight.to(dtype) * weight.numel() ** 0.5
    return (whole, None) if dtype == torch.float32 else (torch.ones((), dtype=dtype), whole)


class Weights:
    """A model's weights as Packed uses them; `fingerprint` tells whether they are still the model's."""

    def __init__(self, model: Qwen, dtype: torch.dtype):
        self.fingerprint = fingerprint(model)
        self.embedding = model.model.embed_tokens.weight
        self.layers = [Layer(block, dtype) for block in model.model.layers]
        head = model.model.embed_tokens if model.lm_head is None else model.lm_head
        gain, self.gain = _gain(model.model.norm.weight, dtype)
        self.head = Product(head.weight.to(dtype) * gain)


def fingerprint(model: Qwen) -> list[tuple[int, int]]:
    """Where each parameter lies and the sum of its bits as integers of its own size, which wraps and copies
    nothing: cheaper than packing. Tensors' own version counters would cost nothing, but fused optimisers do
    not advance them."""
    kinds = {4: torch.int32, 2: torch.int16}
    parameters = [(p.detach(), kinds[p.element_size()]) for p in model.parameters()]
    return [(p.data_ptr(), int(p.view(kind).sum(dtype=kind))) for p, kind in parameters]


class Packed:
    """The fast CPU engine. Its weights are copies; the keys in its cache have their channels reordered, so a
    cache belongs to one engine."""

    packed: weakref.WeakKeyDictionary[Qwen, Weights] = weakref.WeakKeyDictionary()  # for all samplers

    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache, self.dtype = model, cache, cache.k.dtype
        self.turns = turns(cache.max_len + 1, model)
        self.eps = torch.tensor((model.config.hidden_size * model.config.rms_norm_eps) ** 0.5)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Pack the model's weights, unless those packed last are still the same."""
        self.weights = self.packed.get(self.model)
        if self.weights is None or self.weights.fingerprint != fingerprint(self.model):
            self.weights = self.packed[self.model] = None  # the old copies go before the new ones come
            self.weights = self.packed[self.model] = Weights(self.model, self.dtype)

    @torch.no_grad()
    def feed(self, parts: list[Part]) -> Tensor:
        """Hidden states (rows of all parts, D) at each row's last token, not yet through the last norm."""
        passes: list[list[Part]] = []
        room = 0
        for part in (piece for whole in parts for piece in whole.split(PASS)):
            if part.tokens.numel() > room:
                passes.append([])
                room = PASS
            passes[-1].append(part)
            room -= part.tokens.numel()
        return torch.cat([self._pass(parts) for parts in passes])

    def _pass(self, parts: list[Part]) -> Tensor:
        config, weights = self.model.config, self.weights
        x = weights.embedding[torch.cat([part.tokens.flatten() for part in parts])].to(self.dtype)
        attend = [Attend(part, self.cache, config) for part in parts]
        turns = self.turns[torch.cat([a.positions.flatten() for a in attend])].unsqueeze(1)
        sizes, rows = [part.tokens.numel() for part in parts], sum(len(part.counts) for part in parts)
        rotated = config.num_attention_heads + config.num_key_value_heads
        for i, layer in enumerate(weights.layers):
            h = layer.qkv(self._norm(x, layer.gain1)).view(len(x), -1, config.head_dim)
            pairs = h[:, :rotated].float().unflatten(-1, (-1, 2))
            torch.view_as_complex(pairs).mul_(turns)
            if h.dtype != torch.float32:  # else pairs is a view of h
                h[:, :rotated] = pairs.flatten(-2)
            y = [a(i, part) for a, part in zip(attend, h.split(sizes), strict=True)]
            y = torch.cat(y) if len(y) > 1 else y[0]
            if i == len(weights.layers) - 1 and rows < len(x):
                last = self._last(parts)
                x, y = x[last], y[last]
            x = layer.out(y, add=x)
            h = self._norm(x, layer.gain2)
            x = layer.down(F.silu(layer.gate(h), inplace=True).mul_(layer.up(h)), add=x)
        for part in parts:
            self.cache.lengths[part.rows] += torch.tensor(part.counts)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.weights.head(self._norm(hidden, self.weights.gain)).float()

    def _norm(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """x / sqrt(sum(x^2) + D eps): RMSNorm without its gain and sqrt(D), which the gain's factor holds."""
        y = x.float()
        y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True).hypot_(self.eps)
        return y if gain is None else y.to(x.dtype) * gain

    @staticmethod
    def _last(parts: list[Part]) -> Tensor:
        """Where the last token of each row lies among the flattened tokens of all parts."""
        places, offset = [], 0
        for part in parts:
            width = part.tokens.shape[1]
            places += [offset + r * width + count - 1 for r, count in enumerate(part.counts)]
            offset += part.tokens.numel()
        return torch.tensor(places)


class Attend:
    """Attention of one part: stores its keys and values, then looks at the cache."""

    def __init__(self, part: Part, cache: KVCache, config):
        self.part, self.cache = part, cache
        self.kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.heads = config.num_attention_heads
        rows, width = part.tokens.shape
        starts, counts = torch.tensor(part.starts)[:, None], torch.tensor(part.counts)[:, None]
        self.fresh = not any(part.starts)
        steps = torch.arange(width)
        # what lies beyond a row's count is padding: it is stored in the column that nothing reads
        self.positions = torch.where(steps < counts, starts + steps, cache.max_len)
        self.index = torch.arange(part.row, part.row + rows)[:, None]
        if not self.fresh:
            unseen = torch.arange(part.width) > (starts + steps).unsqueeze(-1)  # (rows, T, width)
            mask = torch.zeros(unseen.shape, dtype=cache.k.dtype).masked_fill_(unseen, float("-inf"))
            if width > 1:  # one token's mask spreads over its heads by itself
                mask = mask.repeat(1, self.heads // self.kv_heads, 1)
            self.mask = mask[:, None]

    def __call__(self, layer: int, h: Tensor) -> Tensor:
        """h: (R * T, heads + 2 kv_heads, head_dim), rotated. Returns (R * T, heads * head_dim)."""
        part, (rows, width) = self.part, self.part.tokens.shape
        h = h.view(rows, width, -1, self.head_dim)
        self.cache.kv[layer][self.index, :, self.positions] = h[:, :, self.heads :]
        if self.fresh:
            heads = (self.heads, self.kv_heads, self.kv_heads)
            q, k, v = h.transpose(1, 2).split(heads, dim=1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads > self.kv_heads)
        else:
            # the query heads that share a kv head become rows of one product, as in model.py
            q = h[:, :, : self.heads].transpose(1, 2).reshape(rows, self.kv_heads, -1, self.head_dim)
            seen = self.cache.kv[layer, part.rows, :, : part.width]
            k, v = seen[:, : self.kv_heads], seen[:, self.kv_heads :]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).view(rows, self.heads, width, -1)
        return y.transpose(1, 2).reshape(rows * width, -1)
