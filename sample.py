"""The sampler: many sequences decoded together on one preallocated KV cache, each at its own pace.

    sampler = Sampler(model, slots=64, max_len=512, temperature=1.0)
    slot = sampler.add(prompt, key=(seed, step, problem, sample))
    for event in sampler.step(): ...          # one new token for every slot that is not parked
    sampler.park(slot)                        # it wrote a program: the others go on while that runs
    sampler.extend(slot, tool_tokens)         # the result joins the cache in one forward; it decodes again
    sampler.release(slot)

How it stays fast and simple. Every decoding row has exactly one pending token: drawn, but not yet fed. A
step feeds all pending tokens and, beside them, the prompts and tool results that are waiting; then it draws a
token for every row that was fed to its end. Decoding rows are kept at the front of the cache, by exchanging
rows when one parks or leaves, so a step works on slices. Equal prompts admitted together (the samples of a
group) are fed once and copied. decode.py computes the forward. On CUDA a step in which all rows decode is one
graph, the draw included, and only what was drawn comes to the host.

Randomness is keyed, not ordered: the uniform that decides the token at position t of a sequence depends on
its key and on t alone. So a sequence does not depend on its neighbours, its slot or the world size (below
float32: but for rounding), and a resumed run needs no generator state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fast import cuda, parts
from fast import engine as engines
from fast.parts import Part
from model import KVCache, Qwen


@dataclass(frozen=True)
class Event:
    """One sampled token of one slot, with its log-probability under the distribution it was drawn from."""

    slot: int
    token: int
    logprob: float


@dataclass
class Sample:
    """What generate() returns per prompt: new tokens, a stop id included. finish: "stop" | "length"."""

    tokens: list[int]
    logprobs: list[float]
    finish: str


def uniforms(key: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) that belong to `key`, a sequence of non-negative ints; float64."""
    # with its length in front: SeedSequence takes (1,) and (1, 0) for the same seed
    philox = np.random.Philox(np.random.SeedSequence([len(key), *key]))
    return torch.from_numpy(np.random.Generator(philox).random(count))


def draw(
    logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens (B,) and log-probabilities (B,) from logits (B, V), one uniform per row, by inverse CDF.

    Temperature 0 takes the most likely token and reports its log-probability at temperature 1. With top-p
    or top-k the draw is from the cut distribution and the log-probability still from the full one.
    `overwrite` if the logits are not needed any more: on a CPU fresh memory for 152k words takes longer than
    their exponentials (32 rows: 14.3 ms, 6.5 in place).
    """
    best = logits.argmax(-1) if temperature == 0 else None
    logits = logits if temperature in (0, 1) else logits / temperature
    probs = torch.softmax(logits, dim=-1, out=logits if overwrite else None)
    if temperature == 0:
        tokens = best
    else:
        tokens = inverse_cdf(probs if top_p == 1 and top_k == 0 else cut(probs.double(), top_p, top_k), u)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()


def inverse_cdf(probs: Tensor, u: Tensor) -> Tensor:
    """The first token (B,) up to which probs (B, V) hold more than u (B,) of their sum.

    In two levels, first among blocks of tokens, then inside the block: the running sum of 152k numbers is
    what a draw costs (32 rows: 83 ms; by blocks 9, of which the softmax takes 7).
    """
    if probs.shape[-1] <= BLOCK:
        return _interval(probs.double(), u)[0]
    wide = F.pad(probs, (0, -probs.shape[-1] % BLOCK)) if probs.shape[-1] % BLOCK else probs
    wide = wide.view(len(u), -1, BLOCK)
    block, u = _interval(wide.sum(-1).double(), u)
    return block * BLOCK + _interval(wide[torch.arange(len(u), device=u.device), block].double(), u)[0]


def _interval(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Which of n neighbouring intervals of these widths (B, n) holds u (B,) of the whole, and which share of
    that interval lies before it, below 1: never an interval of width 0."""
    edges = weights.cumsum(-1)
    goal = u[:, None] * edges[:, -1:]  # below the last edge, so the first edge above it ends the interval
    i = torch.searchsorted(edges, goal, right=True).clamp_(max=weights.shape[-1] - 1)
    width = weights.gather(-1, i)
    share = (goal - (edges.gather(-1, i) - width)) / width
    return i.squeeze(-1), share.clamp_(0, 1 - 2**-53).squeeze(-1)


def cut(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities (B, V) with everything outside the top k, then outside the nucleus, set to 0.

    The nucleus is the smallest set of most likely tokens that holds at least top_p (1904.09751).
    """
    if top_k > 0:
        least = probs.topk(min(top_k, probs.shape[-1])).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
    if top_p < 1.0:
        ordered, order = probs.sort(descending=True)
        ahead = ordered.cumsum(-1) - ordered  # what the more likely tokens hold together
        outside = ahead >= top_p * ordered.sum(-1, keepdim=True)
        probs = probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
    return probs


BLOCK = 128  # tokens, of a draw; divides the 151,936 of Qwen2.5


CHUNK = 8192  # prompt and tool tokens fed beside one decoding step; longer ones take several steps


# On CUDA steps that only decode are graphs, and one that feeds takes a small model four times as long. So a
# few rows wait with what is to be fed: so many steps at most, while so many times as many others decode.
PATIENCE = 8


class Sampler:
    """See the head of this file. Rows are laid out as [decoding | parked or waiting | free]; slot numbers are
    stable."""

    def __init__(
        self,
        model: Qwen,
        slots: int,
        max_len: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ):
        if not (temperature >= 0 and 0 < top_p <= 1 and top_k >= 0 and slots > 0):
            raise ValueError(
                f"temperature {temperature}, top_p {top_p}, top_k {top_k}, slots {slots}: expected "
                "temperature >= 0, 0 < top_p <= 1, top_k >= 0, slots > 0"
            )
        weight = model.model.embed_tokens.weight
        self.model, self.slots, self.max_len = model, slots, max_len
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.cache = KVCache(model.config, slots, max_len, weight.device, parts.cache_dtype(weight))
        self.engine = engines.engine(model, self.cache)
        self.graphs = None  # for steps in which all rows decode
        if isinstance(self.engine, cuda.Flash):
            self.graphs = cuda.Graphs(slots, weight.device)
        self.pending = torch.zeros(slots, dtype=torch.long, device=weight.device)  # by row, like all below
        self.uniforms = torch.zeros(slots, max_len + 1, dtype=torch.float64, device=weight.device)
        self.drawn = [0] * slots  # the pending tokens, as the host knows them
        self.lengths = [0] * slots  # tokens in the cache; the pending one is not among them
        self.slot_at = list(range(slots))  # row -> slot
        self.row_of = list(range(slots))  # slot -> row
        self.decoding = 0  # rows [0, decoding) have a pending token
        self.used = 0  # rows [decoding, used) are parked, or wait for their chunk to be fed
        self.parked: set[int] = set()  # slots
        self.chunks: dict[int, list[int]] = {}  # slot -> tokens still to be fed
        self.waited = 0  # steps that went without such tokens, since the last one that fed some
        self.prompts: dict[int, tuple[int, ...]] = {}  # slot -> its prompt, while that is not wholly fed

    @staticmethod
    def slot_bytes(model: Qwen, max_len: int) -> int:
        """Memory of one slot: its cache, its uniforms, and what drawing takes over the vocabulary."""
        config, weight = model.config, model.model.embed_tokens.weight
        cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        cached *= parts.cache_dtype(weight).itemsize
        # logits and probabilities; on CUDA rounded logits too, and all that twice, in graphs and beside them
        drawing = (20 if weight.is_cuda else 8) * config.vocab_size
        return (cached + 8) * (max_len + 1) + drawing

    def close(self) -> None:
        """Free the cache. The sampler cannot be used any more."""
        self.cache = self.engine = self.graphs = None
        if self.pending.is_cuda:
            torch.cuda.empty_cache()  # the memory of graphs is no other tensor's before

    @property
    def free(self) -> int:
        """How many more sequences add() can take."""
        return self.slots - self.used

    @property
    def active(self) -> int:
        """How many sequences the next step works on."""
        return self.used - len(self.parked)

    def add(self, prompt: Sequence[int], key: Sequence[int]) -> int:
        """Admit a sequence of at least one token; its first new token comes with the next step, or when its
        prompt has been fed. The weights are those of the time when a sequence enters an empty sampler."""
        if not self.free:
            raise RuntimeError(f"all {self.slots} slots are in use; release one first")
        if not 0 < len(prompt) < self.max_len:
            raise ValueError(f"a prompt of {len(prompt)} tokens; expected 1 to {self.max_len - 1}")
        if not self.used:
            self.engine.refresh()
            if self.graphs:
                self.graphs.keep_for(self.model)
        row = self.used
        self.used += 1
        self.lengths[row] = 0
        self.cache.lengths[row] = 0
        self.uniforms[row] = uniforms(key, self.max_len + 1)
        slot = self.slot_at[row]
        self.chunks[slot], self.prompts[slot] = list(prompt), tuple(prompt)
        return slot

    def extend(self, slot: int, ids: Sequence[int]) -> None:
        """Append tokens that were not sampled (a tool's result) to a parked slot and let it decode again."""
        if slot not in self.parked:
            raise RuntimeError(f"slot {slot} is not parked; park it before extending it")
        row = self.row_of[slot]
        unfed = self.chunks.get(slot) or [self.drawn[row]]  # a chunk, if parked before it was fed
        if self.lengths[row] + len(unfed) + len(ids) >= self.max_len:
            raise ValueError(f"slot {slot}: {len(ids)} more tokens do not fit into {self.max_len}")
        self.chunks[slot] = [*unfed, *ids]
        self.prompts.pop(slot, None)
        self.parked.remove(slot)

    def park(self, slot: int) -> None:
        """Take an active slot out of decoding; its cache stays."""
        row = self.row_of[slot]
        if row >= self.used or slot in self.parked:
            raise RuntimeError(f"slot {slot} is not active; only a slot that decodes can be parked")
        if row < self.decoding:
            self.decoding -= 1
            self._swap(row, self.decoding)
        self.parked.add(slot)

    def release(self, slot: int) -> None:
        """Give a slot back, active or parked."""
        row = self.row_of[slot]
        if row >= self.used:
            raise RuntimeError(f"slot {slot} is free already")
        if row < self.decoding:  # the hole moves to the end of the decoding rows
            self.decoding -= 1
            self._move(self.decoding, row)
            row = self.decoding
        self.used -= 1
        self._move(self.used, row)
        self.parked.discard(slot)
        self.chunks.pop(slot, None)
        self.prompts.pop(slot, None)

    def step(self) -> list[Event]:
        """One new token for every active slot whose tokens are all fed; [] when all are parked. On CUDA what
        is to be fed may wait for some steps."""
        if not self.active:
            return []
        before = self.decoding
        if before and max(self.lengths[:before]) >= self.max_len:
            raise RuntimeError(f"a sequence outgrew {self.max_len} tokens; release it before that")
        waiting = self.active - before
        if self.graphs and (not waiting or self.waited < PATIENCE and PATIENCE * waiting < before):
            self.waited += bool(waiting)
            self.lengths[:before] = [n + 1 for n in self.lengths[:before]]
            return self._events(*self.graphs.replay(before, self._decode))
        self.waited = 0
        whole, copies, pieces = self._plan()
        parts = [Part(0, self.pending[:before, None], [1] * before, self.lengths[:before])] if before else []
        row = before
        for slots in whole:
            parts.append(self._part(slots, row))
            row += len(slots)
        for slot in copies:
            self._swap(self.row_of[slot], row)
            row += 1
        self.decoding = row
        parts += [self._part([slot], row + i) for i, slot in enumerate(pieces)]
        with torch.no_grad():
            hidden = self.engine.feed(parts)
            for part in parts:
                for i, count in enumerate(part.counts):
                    self.lengths[part.row + i] += count
            copied = [self._copy(*pair) for pair in copies.items()]
            if not row:
                return []
            if copied:
                hidden = hidden[[*range(row - len(copied)), *copied]]
            tokens, logprobs = self._draw(hidden[:row])
            self.pending[:row] = tokens
        return self._events(tokens, logprobs)

    @torch.no_grad()
    def _decode(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the first rows, of which the active (R,) decode, all on the device: for a graph."""
        pending = self.pending[: len(active)]
        tokens, logprobs = self._draw(self.engine.step(pending, active))
        pending.copy_(torch.where(active, tokens, pending))
        return tokens, logprobs

    def _draw(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """A token and its log-prob, (R,) each, for the first rows, from their hidden states (R, D)."""
        n = len(hidden)
        u = self.uniforms[:n].gather(1, self.cache.lengths[:n, None]).squeeze(1)
        options = self.temperature, self.top_p, self.top_k
        return draw(self.engine.head(hidden), u, *options, overwrite=not hidden.is_cuda)

    def _events(self, tokens: Tensor, logprobs: Tensor) -> list[Event]:
        self.drawn[: self.decoding] = tokens.tolist()
        drawn = zip(self.drawn, self.slot_at, logprobs.tolist(), strict=False)
        return [Event(slot, token, logprob) for token, slot, logprob in drawn]

    def _plan(self) -> tuple[list[list[int]], dict[int, int], list[int]]:
        """What joins this step, about CHUNK tokens of it: slots to be fed wholly, as groups of similar
        length; slots whose prompt another one computes; slots that are fed a piece of theirs."""
        whole, pieces, leaders = [], [], {}  # leaders: prompt -> the slot that computes it
        copies: dict[int, int] = {}
        room = CHUNK
        for slot, ids in self.chunks.items():
            prompt = self.prompts.get(slot)
            if slot in self.parked:
                continue
            if prompt is not None and prompt in leaders:
                copies[slot] = leaders[prompt]
            elif room > 0:
                (whole if len(ids) <= CHUNK else pieces).append(slot)
                room -= len(ids)
                leaders[prompt] = slot
        copies = {slot: leader for slot, leader in copies.items() if leader not in pieces}
        # Fresh prompts apart from tool results: they need no mask. Of similar length: little padding.
        whole.sort(key=lambda slot: (self.lengths[self.row_of[slot]] > 0, len(self.chunks[slot])))
        groups: list[list[int]] = []
        for slot in whole:
            first = groups[-1][0] if groups else slot
            same = (self.lengths[self.row_of[first]] > 0) == (self.lengths[self.row_of[slot]] > 0)
            if groups and same and len(self.chunks[slot]) <= 1.25 * len(self.chunks[first]) + 8:
                groups[-1].append(slot)
            else:
                groups.append([slot])
        return groups, copies, pieces

    def _part(self, slots: Sequence[int], row: int) -> Part:
        """The next tokens of `slots`, which take the rows from `row` on."""
        fed = []
        for i, slot in enumerate(slots):
            self._swap(self.row_of[slot], row + i)
            ids = self.chunks[slot]
            fed.append(ids[:CHUNK])
            if ids[CHUNK:]:
                self.chunks[slot] = ids[CHUNK:]  # its place in the queue stays
            else:
                del self.chunks[slot]
                self.prompts.pop(slot, None)
        counts = [len(ids) for ids in fed]
        tokens = torch.tensor([ids + [0] * (max(counts) - len(ids)) for ids in fed])
        starts = self.lengths[row : row + len(slots)]
        return Part(row, tokens.to(self.pending.device), counts, starts)

    def _copy(self, slot: int, leader: int) -> int:
        """Give a slot the prompt that another one has just computed; the other one's row."""
        row, source = self.row_of[slot], self.row_of[leader]
        self.lengths[row] = self.lengths[source]
        self.cache.copy_row(source, row, self.lengths[source])
        del self.chunks[slot], self.prompts[slot]
        return source

    def _swap(self, a: int, b: int) -> None:
        """Exchange two rows with all that belongs to them."""
        if a == b:
            return
        self.cache.swap_rows(a, b, max(self.lengths[a], self.lengths[b]))
        for x in (self.pending, self.uniforms):
            x[[a, b]] = x[[b, a]]
        for x in (self.lengths, self.drawn):
            x[a], x[b] = x[b], x[a]
        self._rename(a, b)

    def _move(self, source: int, hole: int) -> None:
        """Fill a row that is not needed any more with another one, which becomes the hole."""
        if source == hole:
            return
        self.cache.copy_row(source, hole, self.lengths[source])
        for x in (self.pending, self.uniforms, self.lengths, self.drawn):
            x[hole] = x[source]
        self._rename(source, hole)

    def _rename(self, a: int, b: int) -> None:
        self.slot_at[a], self.slot_at[b] = self.slot_at[b], self.slot_at[a]
        self.row_of[self.slot_at[a]], self.row_of[self.slot_at[b]] = a, b


def generate(
    model: Qwen,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    slots: int | None = None,
) -> list[Sample]:
    """Continue each prompt (a list of ids) by up to max_new_tokens, without tools.

    The result for a prompt depends on the weights, seed and its place in `prompts` only, not on `slots` (but
    for rounding, below float32).
    Raises ValueError for an empty prompt or options out of range.
    """
    samples = [Sample([], [], "length") for _ in prompts]
    if not prompts or max_new_tokens < 1:
        return samples
    max_len = max(map(len, prompts)) + max_new_tokens
    slots = min(slots or len(prompts), len(prompts))
    sampler = Sampler(model, slots, max_len, temperature=temperature, top_p=top_p, top_k=top_k)
    waiting = list(range(len(prompts)))[::-1]
    running: dict[int, int] = {}  # slot -> prompt
    while waiting or running:
        while waiting and sampler.free:
            i = waiting.pop()
            running[sampler.add(prompts[i], key=(seed, i))] = i
        for event in sampler.step():
            sample = samples[running[event.slot]]
            sample.tokens.append(event.token)
            sample.logprobs.append(event.logprob)
            if event.token in stop_ids:
                sample.finish = "stop"
            if sample.finish == "stop" or len(sample.tokens) == max_new_tokens:
                sampler.release(event.slot)
                del running[event.slot]
    return samples
