"""The decoder laid out for sampling on CPUs."""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.parts import Part, merged, turns
from model import KVCache, Qwen, amd_with_onednn

BEYOND_CACHE = 2**21  # elements of a weight: 8 MiB in float32, four times an L2 cache


PASS = 1024  # tokens that go through the layers together: 1 MiB of activations at width 256


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
