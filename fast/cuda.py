"""The decoder for sampling on CUDA: flash attention on the cache, and steps as CUDA graphs."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.flash import Ragged, flash_attention
from fast.parts import Part, merged_qkv, rotary_phases
from model import KVCache, Qwen

# Decode steps that a few rows wait before their prompts or results are fed. A step that feeds cannot replay a
# CUDA graph, and takes a small model four times as long. Rows wait only while at least PATIENCE times as many
# decode.
PATIENCE = 8


class Flash:
    """The fast CUDA engine. The tokens of all parts lie end to end, without padding or masks, and
    FlashAttention reads the keys of each row in the cache.

    Weights are read where the optimiser updates them. Only q, k and v are copied, into one product whose
    channels are reordered: a cache belongs to one engine.
    """

    @torch.no_grad()
    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache = model, cache
        self.phases = rotary_phases(cache.max_len + 1, model).to(cache.k.device)
        self.qkv = [merged_qkv(block.self_attn) for block in model.model.layers]
        self.graphs = Graphs(cache.k.shape[1], cache.k.device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the present q, k and v, in place."""
        for block, old in zip(self.model.model.layers, self.qkv, strict=True):
            for x, new in zip(old, merged_qkv(block.self_attn), strict=True):
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
        ragged = self._ragged(F.pad(ends, (1, 0)).int(), rows, longest, starts + counts)
        hidden = self._layers(tokens, rows[owners], positions, ragged)
        self.cache.lengths[rows] = starts + counts
        return hidden[ends - 1]

    @torch.no_grad()
    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        """Hidden states (R, D) after one more token (R,) of each of the rows 0 .. R - 1 that is active (R,).

        Nothing goes to the host or comes from it, so that a CUDA graph can replay this. Rows that are not
        active stay as they are, and their hidden states mean nothing.
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        lengths = self.cache.lengths[: len(tokens)]
        positions = torch.where(active, lengths, self.cache.max_len)
        seen = torch.where(active, lengths + 1, 1)  # rows that are not active read one token
        begins = torch.arange(len(tokens) + 1, device=tokens.device, dtype=torch.int32)
        hidden = self._layers(tokens, rows, positions, self._ragged(begins, rows, 1, seen))
        lengths += active
        return hidden

    def _ragged(self, begins: Tensor, rows: Tensor, longest: int, seen: Tensor) -> Ragged:
        """Queries that begin at `begins` (R + 1,), at most `longest` a row, each row of which has `seen` (R,)
        tokens in row `rows` (R,) of the cache."""
        width = self.cache.max_len + 1
        return Ragged(begins, F.pad(rows * width, (0, 1)).int(), longest, width, seen.int())

    def _layers(self, tokens: Tensor, rows: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        """Hidden states (N, D) of tokens (N,) at these rows (N,) of the cache and positions (N,) there."""
        config = self.model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        phases = self.phases[positions].unsqueeze(1)
        x = F.embedding(tokens, self.model.model.embed_tokens.weight)
        for block, qkv, stored in zip(self.model.model.layers, self.qkv, self.cache.kv, strict=True):
            h = F.linear(block.input_layernorm(x), *qkv).view(len(x), -1, config.head_dim)
            pairs = h[:, : heads + kv_heads].float().unflatten(-1, (-1, 2))
            h[:, : heads + kv_heads] = torch.view_as_real(torch.view_as_complex(pairs) * phases).flatten(-2)
            stored[rows, :, positions] = h[:, heads:]
            k, v = stored.transpose(1, 2).flatten(0, 1).split(kv_heads, dim=1)  # no copy: the cache's order
            y = flash_attention(h[:, :heads], k, v, ragged).flatten(1)
            x.addmm_(y, block.self_attn.o_proj.weight.t())
            h, mlp = block.post_attention_layernorm(x), block.mlp
            h = F.silu(F.linear(h, mlp.gate_proj.weight), inplace=True).mul_(F.linear(h, mlp.up_proj.weight))
            x.addmm_(h, mlp.down_proj.weight.t())
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.model.head(self.model.model.norm(hidden))


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all samplers: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


class Graphs:
    """A step over the first rows of a sampler as CUDA graphs, one per bucket of rows.

    A graph replays kernels on fixed addresses. The optimiser updates weights in place, so graphs stay valid
    until keep_for() finds weights elsewhere. The tensors that a step reads must live as long as the graph.
    Graphs live as long as their sampler, in training for one rollout.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        self.count = torch.zeros((), dtype=torch.long, device=device)
        self.pool = torch.cuda.graph_pool_handle()
        self.places: list[int] = []
        self.waited = 0  # steps since the last one that fed, in which tokens waited

    def may_replay(self, decoding: int, waiting: int) -> bool:
        """Whether the next step replays a graph of the decoding rows, and feeds none of the waiting ones."""
        replays = not waiting or self.waited < PATIENCE and PATIENCE * waiting < decoding
        self.waited = self.waited + bool(waiting) if replays else 0
        return replays

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
        """Results of step(active) for the first `count` rows, valid until the next call. active (rows,) bool:
        the step changes nothing of the rows that are not active."""
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
