"""The decoder for sampling on CUDA: flash attention on the cache, and steps as CUDA graphs."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.parts import Part, merged, turns
from model import KVCache, Qwen, flash_attention


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
