"""The sampler: many sequences decoded together on one preallocated KV cache, each at its own pace.

    sampler = Sampler(model, slots=64, max_len=512, temperature=1.0)
    slot = sampler.add(prompt, key=(seed, step, problem, sample))
    for event in sampler.step(): ...          # one new token for every slot that is not parked
    sampler.park(slot)                        # it wrote a program: the others go on while that runs
    sampler.extend(slot, tool_tokens)         # the result joins the cache in one forward; it decodes again
    sampler.release(slot)

Every decoding sequence has one pending token, sampled but not yet fed. A step feeds all pending tokens, and
beside them the prompts and tool results that wait. Then it samples a token for every sequence that was fed
to its end. Decoding sequences hold the first rows of the cache, so that a step works on slices. Equal prompts
admitted together, the samples of a group, are fed once and copied. An engine computes the forward pass:
`Plain`, or a faster one of fast/. On CUDA a step in which nothing waits is one graph.

Randomness is keyed, not ordered: the uniform that decides the token at position t of a sequence depends on
its key and on t alone. So a sequence does not depend on its neighbours, its slot or the world size (below
float32: but for rounding), and a resumed run needs no generator state.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from fast.cpu import Packed
from fast.draw import inverse_cdf
from fast.flash import flash_fits
from fast.parts import Part, cache_dtype, of_similar_length
from model import MLP, Attention, KVCache, Qwen
from plumbing.config import UsageError

# Prompt and tool tokens fed in one step. Longer ones take several steps, beside which the others decode.
CHUNK = 8192


@dataclass(frozen=True)
class Event:
    """A sampled token of one slot, and its log-probability."""

    slot: int
    token: int
    logprob: float


@dataclass
class Sample:
    """The continuation of a prompt: new tokens, a stop id included. finish: "stop" | "length"."""

    tokens: list[int]
    logprobs: list[float]
    finish: str


def uniforms(key: Sequence[int], count: int) -> Tensor:
    """`count` float64 numbers in [0, 1), determined by `key`, a sequence of non-negative ints."""
    # the length in front: else (1,) and (1, 0) are the same seed
    philox = np.random.Philox(np.random.SeedSequence([len(key), *key]))
    return torch.from_numpy(np.random.Generator(philox).random(count))


def draw(
    logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Sampled tokens (B,) and their log-probabilities (B,), from logits (B, V) and a uniform u (B,) per row.

    Temperature 0 takes the most likely token, and its log-probability at temperature 1. With top-p or top-k
    the token is from the cut distribution, its log-probability from the full one. `overwrite` writes the
    softmax into the logits: on a CPU, allocating a new tensor costs more than the softmax.
    """
    best = logits.argmax(-1) if temperature == 0 else None
    logits = logits if temperature in (0, 1) else logits / temperature
    probs = torch.softmax(logits, dim=-1, out=logits if overwrite else None)
    if temperature == 0:
        tokens = best
    else:
        tokens = inverse_cdf(probs if top_p == 1 and top_k == 0 else cut(probs.double(), top_p, top_k), u)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()


def cut(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities (B, V) with everything outside the top k, then outside the nucleus, set to 0.

    The nucleus is the smallest set of most likely tokens that holds at least top_p (1904.09751).
    """
    if top_k > 0:
        least = probs.topk(min(top_k, probs.shape[-1])).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
    if top_p < 1.0:
        ordered, order = probs.sort(descending=True)
        ahead = ordered.cumsum(-1) - ordered  # the probability of all more likely tokens
        outside = ahead >= top_p * ordered.sum(-1, keepdim=True)
        probs = probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
    return probs


class Plain:
    """The forward pass of model.py, one call per part. fast/ holds faster engines, with the same methods."""

    graphs = None  # only the CUDA engine has some

    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache = model, cache

    def refresh(self) -> None:
        """Take over changed weights; this engine has no copies of them."""

    def feed(self, parts: list[Part]) -> Tensor:
        """Hidden states (rows of all parts, D) at the last token of each row; the tokens join the cache."""
        last = []
        for part in parts:
            counts = torch.tensor(part.counts, device=part.tokens.device)
            options = {"rows": part.rows, "counts": counts, "width": part.width}
            hidden = self.model.forward(part.tokens, self.cache, **options)  # past a sharded model's hooks
            last.append(hidden[torch.arange(len(counts), device=hidden.device), counts - 1])
        return torch.cat(last)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.model.head(hidden)


def fastest_engine(model: Qwen, cache: KVCache):
    """The fastest engine for the device of the model. float64, the dtype of oracles, is Plain's, and so are
    layers other than model.py's."""
    if any(type(b.self_attn) is not Attention or type(b.mlp) is not MLP for b in model.model.layers):
        return Plain(model, cache)
    if cache.k.device.type == "cpu" and cache.k.dtype != torch.float64:
        return Packed(model, cache)
    if flash_fits(cache.k, model.config.head_dim):
        from fast.cuda import Flash

        return Flash(model, cache)
    return Plain(model, cache)


class State(Enum):
    FREE = "no sequence"
    WAITING = "its prompt or a tool's result is to be fed"
    DECODING = "gets a token in every step"
    PARKED = "keeps its cache, gets no tokens"


@dataclass(eq=False)
class Slot:
    """A place for one sequence, and its record."""

    number: int  # what add() returns
    row: int  # of the cache
    state: State = State.FREE
    length: int = 0  # tokens in the cache
    unfed: list[int] = field(default_factory=list)  # tokens of the sequence that are not in the cache yet
    prompt: tuple[int, ...] | None = None  # None after extend(): only equal prompts are fed once
    arrival: int = 0  # those that came first are fed first


class Sampler:
    """See the head of this file. Rows of the cache: [decoding | parked or waiting | free]."""

    def __init__(self, model: Qwen, slots: int, max_len: int, *, temperature=1.0, top_p=1.0, top_k=0):
        if not (temperature >= 0 and 0 < top_p <= 1 and top_k >= 0 and slots > 0):
            found = f"temperature {temperature}, top_p {top_p}, top_k {top_k}, slots {slots}"
            raise ValueError(f"{found}: expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, slots > 0")
        weight = model.model.embed_tokens.weight
        self.model, self.slots, self.max_len = model, slots, max_len
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.cache = KVCache(model.config, slots, max_len, weight.device, cache_dtype(weight))
        self.engine = fastest_engine(model, self.cache)
        self.graphs = self.engine.graphs
        self.pending = torch.zeros(slots, dtype=torch.long, device=weight.device)  # by row
        self.uniforms = torch.zeros(slots, max_len + 1, dtype=torch.float64, device=weight.device)  # by row
        self.places = [Slot(i, i) for i in range(slots)]  # by slot
        self.rows = list(self.places)  # by row
        self.arrivals = itertools.count()

    def close(self) -> None:
        """Free the cache. The sampler cannot be used any more."""
        self.cache = self.engine = self.graphs = None
        if self.pending.is_cuda:
            torch.cuda.empty_cache()  # the memory of graphs is no other tensor's before

    @property
    def free(self) -> int:
        """How many more sequences add() can take."""
        return sum(slot.state is State.FREE for slot in self.places)

    @property
    def active(self) -> int:
        """How many sequences the next step works on."""
        return sum(slot.state in (State.DECODING, State.WAITING) for slot in self.places)

    @property
    def decoding(self) -> int:
        """How many sequences have a pending token: rows [0, decoding)."""
        return sum(slot.state is State.DECODING for slot in self.places)

    def add(self, prompt: Sequence[int], key: Sequence[int]) -> int:
        """The slot of a new sequence. Its first new token comes once its prompt is fed.

        Changed weights are taken over when a sequence enters an empty sampler. Raises RuntimeError if all
        slots are in use, ValueError for a prompt that is empty or does not fit.
        """
        used = self.slots - self.free
        if used == self.slots:
            raise RuntimeError(f"all {used} slots are in use; release one first")
        if not 0 < len(prompt) < self.max_len:
            raise ValueError(f"a prompt of {len(prompt)} tokens; expected 1 to {self.max_len - 1}")
        if not used:
            self.engine.refresh()
            if self.graphs:
                self.graphs.keep_for(self.model)
        slot = self.rows[used]
        slot.state, slot.arrival, slot.length = State.WAITING, next(self.arrivals), 0
        slot.unfed, slot.prompt = list(prompt), tuple(prompt)
        self.cache.lengths[used] = 0
        self.uniforms[used] = uniforms(key, self.max_len + 1)
        return slot.number

    def extend(self, slot: int, ids: Sequence[int]) -> None:
        """Append tokens that were not sampled, a tool's result, to a parked slot, and let it decode again."""
        place = self.places[slot]
        if place.state is not State.PARKED:
            raise RuntimeError(f"slot {slot} is not parked; park it before extending it")
        if place.length + len(place.unfed) + len(ids) >= self.max_len:
            raise ValueError(f"slot {slot}: {len(ids)} more tokens do not fit into {self.max_len}")
        place.unfed += ids
        place.state, place.arrival, place.prompt = State.WAITING, next(self.arrivals), None

    def park(self, slot: int) -> None:
        """Take an active slot out of decoding; its cache stays."""
        place = self.places[slot]
        if place.state in (State.FREE, State.PARKED):
            raise RuntimeError(f"slot {slot} is not active; only a slot that decodes can be parked")
        if place.state is State.DECODING:
            self._swap(place.row, self.decoding - 1)
        place.state = State.PARKED

    def release(self, slot: int) -> None:
        """Give a slot back, active or parked."""
        place = self.places[slot]
        if place.state is State.FREE:
            raise RuntimeError(f"slot {slot} is free already")
        if place.state is State.DECODING:
            self._swap(place.row, self.decoding - 1)
        self._swap(place.row, self.slots - self.free - 1)
        place.state = State.FREE

    def step(self) -> list[Event]:
        """A new token for every active slot that is fed to its end; [] without any. On CUDA tokens to be
        fed may wait some steps (fast.cuda.PATIENCE). Raises UsageError for logits that are not finite."""
        decoding = self.rows[: self.decoding]
        if not self.active:
            return []
        if any(slot.length >= self.max_len for slot in decoding):
            raise RuntimeError(f"a sequence outgrew {self.max_len} tokens; release it before that")
        if self.graphs and self.graphs.may_replay(len(decoding), self.active - len(decoding)):
            tokens, logprobs = self.graphs.replay(len(decoding), self._decode)
            for slot in decoding:
                slot.length += 1
        else:
            tokens, logprobs = self._feed(decoding)
        events = []
        for slot, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=False):
            if logprob != logprob:  # one NaN or infinite logit makes all probabilities of its row NaN
                raise UsageError("the logits are NaN or infinite: damaged weights, or too large for --dtype")
            slot.unfed = [token]
            events.append(Event(slot.number, token, logprob))
        return events

    @torch.no_grad()
    def _decode(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the first rows, of which the active (R,) decode, all on the device: for a graph."""
        pending = self.pending[: len(active)]
        tokens, logprobs = self._draw(self.engine.step(pending, active))
        pending.copy_(torch.where(active, tokens, pending))
        return tokens, logprobs

    @torch.no_grad()
    def _feed(self, decoding: list[Slot]) -> tuple[Tensor, Tensor]:
        """Feed pending and waiting tokens; a token and its log-prob for each row that decodes from now on."""
        groups, copies, pieces = self._plan()
        parts, row = [], 0
        for group in [decoding, *groups] if decoding else groups:
            parts.append(self._part(group, row))
            row += len(group)
        for slot in copies:
            self._swap(slot.row, row)
            row += 1
        parts += [self._part([slot], row + i) for i, slot in enumerate(pieces)]
        hidden = self.engine.feed(parts)
        for part in parts:
            for slot, fed in zip(self.rows[part.rows], part.counts, strict=True):
                slot.length += fed
        for slot, leader in copies.items():
            self.cache.copy_row(leader.row, slot.row, leader.length)
            slot.state, slot.length = State.DECODING, leader.length
        if not row:
            return hidden[:0], hidden[:0]
        if copies:
            hidden = hidden[[*range(row - len(copies)), *(leader.row for leader in copies.values())]]
        tokens, logprobs = self._draw(hidden[:row])
        self.pending[:row] = tokens
        return tokens, logprobs

    def _draw(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """A token and its log-prob, (R,) each, for the first rows, from their hidden states (R, D)."""
        n = len(hidden)
        u = self.uniforms[:n].gather(1, self.cache.lengths[:n, None]).squeeze(1)
        logits = self.engine.head(hidden)
        return draw(logits, u, self.temperature, self.top_p, self.top_k, overwrite=not logits.is_cuda)

    def _plan(self) -> tuple[list[list[Slot]], dict[Slot, Slot], list[Slot]]:
        """(groups of slots fed completely, {copy: leader} for equal prompts, slots fed a chunk of their
        tokens): the waiting slots that join this step, about CHUNK tokens in all."""
        whole, pieces, leaders, copies = [], [], {}, {}
        room = CHUNK
        waiting = [slot for slot in self.places if slot.state is State.WAITING]
        for slot in sorted(waiting, key=lambda slot: slot.arrival):
            if slot.prompt is not None and slot.prompt in leaders:
                copies[slot] = leaders[slot.prompt]
            elif room > 0:
                (whole if len(slot.unfed) <= CHUNK else pieces).append(slot)
                room -= len(slot.unfed)
                leaders[slot.prompt] = slot
        copies = {slot: leader for slot, leader in copies.items() if leader not in pieces}
        return of_similar_length(whole), copies, pieces

    def _part(self, slots: list[Slot], row: int) -> Part:
        """The next tokens of `slots`, which take the rows from `row` on."""
        fed = []
        for i, slot in enumerate(slots):
            self._swap(slot.row, row + i)
            fed.append(slot.unfed[:CHUNK])
            slot.unfed = slot.unfed[CHUNK:]
            slot.state = State.WAITING if slot.unfed else State.DECODING
        counts = [len(ids) for ids in fed]
        tokens = torch.tensor([ids + [0] * (max(counts) - len(ids)) for ids in fed])
        return Part(row, tokens.to(self.pending.device), counts, [slot.length for slot in slots])

    def _swap(self, a: int, b: int) -> None:
        """Exchange two rows with all that belongs to them."""
        if a == b:
            return
        self.cache.swap_rows(a, b, max(self.rows[a].length, self.rows[b].length))
        for x in (self.pending, self.uniforms):
            x[[a, b]] = x[[b, a]]
        self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        self.rows[a].row, self.rows[b].row = a, b


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
    """A continuation of each prompt (a list of ids) by up to max_new_tokens, without tools.

    A continuation depends on the weights, the seed and the prompt's index, not on `slots` (below float32: but
    for rounding). Raises ValueError for an empty prompt or options out of range.
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
