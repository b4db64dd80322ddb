"""The sampler against what it must equal: whole rows recomputed without a cache, the trainer's log-probs,
brute-force draws, transformers.

The oracle of most tests is `explain`: one plain forward of a finished row, float64 probabilities, and the
row's own uniforms say which token each sampled position must hold. By induction over positions that is the
sequence that decoding it alone, without any cache, would have given.
"""

import random
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from flash import use_flash

import model as models
import sample
from fast import cpu, cuda
from loss import token_logprobs
from model import Config, Qwen
from sample import Event, Sample, Sampler, draw, generate, uniforms

torch.set_num_threads(1)

CONFIG = Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=10_000.0,
)
LAST = 1 - 2**-53  # the largest number that uniforms() can give


def small_model(seed: int = 0) -> Qwen:
    """Random weights, far larger than trained ones: each token's distribution depends on all before it."""
    model = Qwen(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.5 if p.dim() < 2 else 1.5 / p.shape[1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale + ("norm" in name))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(params=["Packed", "Flash"])
def engine(request, monkeypatch):
    """Each of the fast engines in turn; CUDA's with a plain kernel, in float32."""
    if request.param == "Flash":
        use_flash(monkeypatch)
    return request.param


def some_tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(CONFIG.vocab_size) for _ in range(n)]


@torch.no_grad()
def explain(model, tokens, sampled, logprobs, key, temperature=1.0):
    """Assert that each position t with sampled[t] holds the token that the uniforms of `key` draw there,
    given the tokens before it, and that logprobs[t] is its log-probability: float64, no cache, no batch."""
    logits = model.head(model(torch.tensor([tokens])))[0].double() / temperature
    probs = logits.softmax(-1)
    edges = probs.cumsum(-1)
    u = np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *key]))).random(len(tokens))
    for t, token in enumerate(tokens):
        if sampled[t]:
            above = edges[t - 1, token].item()
            below = above - probs[t - 1, token].item()
            assert below - 1e-5 <= u[t] <= above + 1e-5, f"position {t} of {len(tokens)}"
            assert logprobs[t] == pytest.approx(probs[t - 1, token].log().item(), abs=1e-4)


class Row:
    """What the sampler should hold in one slot: all tokens so far, and which of them it drew."""

    def __init__(self, prompt, key):
        self.key = key
        self.tokens, self.sampled, self.logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)

    def take(self, event: Event):
        self.tokens.append(event.token)
        self.sampled.append(True)
        self.logprobs.append(event.logprob)

    def give(self, ids):
        self.tokens += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)


def assert_equals_trainer(model, rows, temperature=1.0):
    """The log-probs of all rows, as one padded batch, through the function that the losses use."""
    width = max(len(r.tokens) for r in rows)
    tokens = torch.tensor([r.tokens + [0] * (width - len(r.tokens)) for r in rows])
    mask = torch.tensor([r.sampled + [False] * (width - len(r.tokens)) for r in rows])
    stored = torch.tensor([r.logprobs + [0.0] * (width - len(r.tokens)) for r in rows])
    lengths = torch.tensor([len(r.tokens) for r in rows])
    with torch.no_grad():
        expected = token_logprobs(model, tokens, lengths=lengths, mask=mask, temperature=temperature)
    assert mask.sum() > 20
    assert (stored - expected).abs().max() <= 1e-4


# -- one sequence, its neighbours and the trainer ------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_logprobs_equal_the_trainers_also_after_tool_results(seed, temperature, engine):
    """Rows parked at different times while the others decode on, extended by 1 to 8 tokens, twice each."""
    model, rng = small_model(seed), random.Random(seed)
    sampler = Sampler(model, slots=4, max_len=80, temperature=temperature)
    rows = {}
    for i in range(4):
        row = Row(some_tokens(rng, 3 + 5 * i), (seed, i))
        rows[sampler.add(row.tokens, row.key)] = row
    after_extension = 0
    for step in range(40):
        for event in sampler.step():
            after_extension += not rows[event.slot].sampled[-1] and step > 0
            rows[event.slot].take(event)
        for i, slot in enumerate(rows):
            if step % 20 == 3 + 2 * i:
                sampler.park(slot)
            if step % 20 == 5 + 3 * i:
                ids = some_tokens(rng, 1 + 2 * i + step // 20)
                rows[slot].give(ids)
                sampler.extend(slot, ids)
    assert after_extension == 8
    assert_equals_trainer(model, list(rows.values()), temperature)
    for row in rows.values():
        explain(model, row.tokens, row.sampled, row.logprobs, row.key, temperature)


def assert_same(found: list[Sample], expected: list[Sample]):
    assert [s.tokens for s in found] == [s.tokens for s in expected]
    assert [s.finish for s in found] == [s.finish for s in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_samples_do_not_depend_on_slots(model, engine):
    rng = random.Random(3)
    prompts = [some_tokens(rng, n) for n in (5, 1, 17, 9, 2, 30, 4)]
    options = dict(max_new_tokens=25, stop_ids=(3, 40), seed=11)
    expected = generate(model, prompts, **options)
    assert {s.finish for s in expected} == {"stop", "length"}
    for slots in (1, 3, 6, 100):
        assert_same(generate(model, prompts, slots=slots, **options), expected)
    for i, (prompt, found) in enumerate(zip(prompts, expected, strict=True)):
        n = len(prompt)
        sampled = [False] * n + [True] * len(found.tokens)
        explain(model, prompt + found.tokens, sampled, [0.0] * n + found.logprobs, (11, i))


def continued(model, prompts: dict, order, steps: int, slots: int = 8, max_len: int = 64) -> dict:
    """Tokens of each key's row, admitted in this order; prompts: key -> tokens."""
    sampler = Sampler(model, slots, max_len)
    rows = {}
    for key in order:
        rows[sampler.add(prompts[key], key)] = Row(prompts[key], key)
    for _ in range(steps):
        for event in sampler.step():
            rows[event.slot].take(event)
    return {row.key: row.tokens for row in rows.values()}


def test_a_row_depends_neither_on_the_order_nor_on_the_presence_of_neighbours(model):
    rng = random.Random(4)
    prompts = {(5, i): some_tokens(rng, 1 + 4 * i) for i in range(6)}
    everyone = continued(model, prompts, prompts, 20)
    assert continued(model, prompts, list(prompts)[::-1], 20) == everyone
    assert continued(model, prompts, rng.sample(list(prompts), 6), 20) == everyone
    for key in prompts:
        assert continued(model, prompts, [key], 20) == {key: everyone[key]}
    # nor on the room: a longer row has more uniforms, and the first ones must stay
    assert continued(model, prompts, prompts, 20, slots=6, max_len=300) == everyone


def test_the_uniform_belongs_to_the_position_not_to_the_number_of_draws(model):
    """A row that is interrupted and begun again from what it had goes on as if nothing had happened."""
    prompt, key = some_tokens(random.Random(5), 4), (9, 9)
    whole = continued(model, {key: prompt}, [key], 30)[key]
    for cut in (5, 11, 33):
        assert continued(model, {key: whole[:cut]}, [key], 34 - cut)[key] == whole


def test_a_groups_prompt_is_computed_once_and_equals_prompts_fed_alone(model, monkeypatch):
    rng = random.Random(6)
    same, other = some_tokens(rng, 20), some_tokens(rng, 12)
    prompts = {(0, i): other if i == 2 else same for i in range(6)}
    alone = {key: continued(model, prompts, [key], 15)[key] for key in prompts}
    assert len({tuple(tokens) for tokens in alone.values()}) == 6  # or equality would say nothing
    shapes = []
    feed = cpu.Packed.feed
    monkeypatch.setattr(
        cpu.Packed,
        "feed",
        lambda self, parts: shapes.append([tuple(p.tokens.shape) for p in parts]) or feed(self, parts),
    )
    assert continued(model, prompts, prompts, 15) == alone
    assert shapes == [[(2, 20)]] + [[(6, 1)]] * 14  # two different prompts; then steps


def test_rows_admitted_later_do_not_share_what_is_no_longer_the_prompt(model):
    """The row that computed the prompt has moved on and moved elsewhere; a newcomer feeds it anew."""
    prompt = some_tokens(random.Random(7), 9)
    sampler = Sampler(model, slots=3, max_len=40)
    rows = {sampler.add(prompt, (1, 0)): Row(prompt, (1, 0))}
    for step in range(12):
        if step in (4, 6):
            rows[sampler.add(prompt, (1, step))] = Row(prompt, (1, step))
        for event in sampler.step():
            rows[event.slot].take(event)
    assert [len(r.tokens) for r in rows.values()] == [21, 17, 15]
    for r in rows.values():
        explain(model, r.tokens, r.sampled, r.logprobs, r.key)


# -- any schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_gives_what_each_sequence_alone_would_give(model, seed, engine):
    """add, step, park, extend and release in random order, on slots that are always short: whatever happened
    to its neighbours and wherever its cache was moved, every sequence is the one of `explain`."""
    rng = random.Random(seed)
    max_len, slots = 48, rng.choice([2, 3, 5, 8])
    sampler = Sampler(model, slots, max_len)
    pool = [some_tokens(rng, rng.randint(1, 12)) for _ in range(3)]  # groups share prompts
    active, parked, done, did = {}, {}, [], Counter()

    def release(held, slot):
        done.append(held.pop(slot))
        sampler.release(slot)

    for turn in range(500):
        action = rng.choice(["add", "step", "step", "park", "extend", rng.choice(["add", "release"])])
        if action == "add" and len(active) + len(parked) < slots:
            prompt = rng.choice(pool) if rng.random() < 0.7 else some_tokens(rng, rng.randint(1, 20))
            row = Row(prompt, (seed, turn))
            slot = sampler.add(prompt, row.key)
            assert slot not in active and slot not in parked
            active[slot] = row
        elif action == "step":
            for slot in [s for s, row in active.items() if len(row.tokens) >= max_len - 1]:
                release(active, slot)
            events = sampler.step()
            assert sorted(e.slot for e in events) == sorted(active)
            for event in events:
                active[event.slot].take(event)
        elif action == "park" and active:
            slot = rng.choice(list(active))
            sampler.park(slot)
            parked[slot] = active.pop(slot)
        elif action == "extend" and parked:
            slot = rng.choice(list(parked))
            row = parked[slot]
            ids = some_tokens(rng, rng.randint(0, 8))
            if len(row.tokens) + len(ids) >= max_len:
                with pytest.raises(ValueError, match="do not fit"):
                    sampler.extend(slot, ids)
                release(parked, slot)
            else:
                row.give(ids)
                sampler.extend(slot, ids)
                active[slot] = parked.pop(slot)
        elif action == "release" and rng.random() < 0.4 and active | parked:
            slot = rng.choice(list(active | parked))
            release(active if slot in active else parked, slot)
        else:
            continue
        did[action] += 1
        assert sampler.free == slots - len(active) - len(parked)
    rows = done + list(active.values()) + list(parked.values())
    assert min(did.values()) > 3 and sum(map(sum, (r.sampled for r in rows))) > 80
    for row in rows:
        explain(model, row.tokens, row.sampled, row.logprobs, row.key)
    assert_equals_trainer(model, rows)


def test_a_row_parked_before_it_was_fed_keeps_what_was_to_be_fed(model):
    """park() between add() and step(), or twice between steps: extend() once replaced the unfed tokens."""
    rng = random.Random(8)
    sampler = Sampler(model, slots=2, max_len=40)
    row, ids = Row(some_tokens(rng, 6), (0, 0)), [some_tokens(rng, n) for n in (3, 1, 4)]
    slot = sampler.add(row.tokens, row.key)
    for part in ids:
        sampler.park(slot)
        sampler.extend(slot, part)
        row.give(part)
    for _ in range(5):
        row.take(sampler.step()[0])
    explain(model, row.tokens, row.sampled, row.logprobs, row.key)


# -- uniforms ------------------------------------------------------------------------------------------------


def test_uniforms_are_the_same_forever():
    """Written down: a change of these numbers changes every sampled sequence of every run."""
    expected = [0.42198261491913625, 0.16698909875827206, 0.7645401522422938]
    assert uniforms((0, 1, 2, 3), 3).tolist() == expected


def test_uniforms_belong_to_their_key_and_place():
    assert torch.equal(uniforms((4, 5), 10), uniforms((4, 5), 1000)[:10])
    keys = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)]
    keys += [(1,), (1, 0), (1, 0, 0, 0), (0,), (0, 0)]
    numbers = torch.stack([uniforms(key, 20) for key in keys])
    assert numbers.unique().numel() == numbers.numel()  # 53 bits: none occurs twice
    assert numbers.dtype == torch.float64 and (numbers >= 0).all() and (numbers < 1).all()
    with pytest.raises(ValueError):
        uniforms((-1, 0), 3)


@pytest.mark.parametrize("lag", ["positions", "keys"])
def test_neighbouring_uniforms_are_independent(lag):
    """Chi-square over 8 x 8 cells of (number, next position's) and (number, next key's); 63 degrees."""
    numbers = torch.stack([uniforms((1, key), 64) for key in range(200)])
    a, b = (numbers[:, :-1], numbers[:, 1:]) if lag == "positions" else (numbers[:-1], numbers[1:])
    counts = ((a * 8).long() * 8 + (b * 8).long()).flatten().bincount(minlength=64).double()
    expected = a.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 118  # exceeded by chance 1 time in 30,000


# -- draw ----------------------------------------------------------------------------------------------------


def brute_force(probs: list[float], u: float, top_p: float = 1.0, top_k: int = 0) -> int:
    """The definition in plain Python: the k likeliest, of those the fewest that hold top_p, then walk."""
    likely = sorted(range(len(probs)), key=lambda i: -probs[i])
    if top_k:
        likely = likely[:top_k]
    total = sum(probs[i] for i in likely)
    kept, held = [], 0.0
    for i in likely:
        if held < top_p * total:
            kept.append(i)
            held += probs[i]
    total = sum(probs[i] for i in kept)
    walked = 0.0
    for i in sorted(kept):
        walked += probs[i] / total
        if u < walked:
            return i
    return max(kept)


def test_edges_of_the_inverse_cdf_are_exact():
    """n equal tokens: token i is drawn from u = i / n on, to the last number before (i + 1) / n."""
    for n in (1, 2, 4, 8, 64, 256, 1024):  # from 256 on the draw goes by blocks
        at = torch.arange(n, dtype=torch.float64) / n
        before = torch.nextafter((torch.arange(n, dtype=torch.float64) + 1) / n, torch.tensor(0.0).double())
        for u in (at, before):
            tokens, logprobs = draw(torch.full((n, n), 3.7), u, 1.0, 1.0, 0)
            assert tokens.tolist() == list(range(n))
            torch.testing.assert_close(logprobs, torch.full((n,), 1 / n).log())


@pytest.mark.parametrize("words", [12, 300])
@pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.6, 0), (1.0, 3), (0.6, 5)])
def test_a_token_of_probability_zero_is_never_drawn(top_p, top_k, words):
    """At u = 0, at the largest u, and on the edges between; first, last and in the middle; by blocks too,
    of which some hold nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(300, words, generator=generator)
    impossible = torch.rand(300, words, generator=generator) < (0.6 if words == 12 else 0.99)
    impossible[:, 5] = False
    logits = logits.masked_fill(impossible, -torch.inf)
    inner = logits.double().softmax(-1).cumsum(-1)[:, 4].clamp(max=LAST)
    for u in (torch.zeros(300).double(), torch.full((300,), LAST, dtype=torch.float64), inner):
        tokens, logprobs = draw(logits, u, 1.0, top_p, top_k)
        assert not impossible[range(300), tokens].any()
        assert logprobs.isfinite().all()


@pytest.mark.parametrize(
    "temperature, top_p, top_k", [(1, 1, 0), (0.5, 1, 0), (2, 1, 0), (1, 0.8, 0), (1, 1, 4)]
)
def test_frequencies_follow_the_distribution(temperature, top_p, top_k):
    logits = torch.randn(10, generator=torch.Generator().manual_seed(2))
    probs = (logits.double() / temperature).softmax(-1).tolist()
    kept = sorted(range(10), key=lambda i: -probs[i])[: top_k or 10]
    while sum(probs[i] for i in kept[:-1]) >= top_p:
        kept.pop()
    count = 20_000
    tokens, _ = draw(logits.expand(count, -1), uniforms((7,), count), temperature, top_p, top_k)
    found = tokens.bincount(minlength=10).tolist()
    expected = [count * probs[i] / sum(probs[j] for j in kept) if i in kept else 0.0 for i in range(10)]
    assert all(f == 0 for f, e in zip(found, expected, strict=True) if e == 0)
    chi_square = sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True) if e)
    assert chi_square < 40  # 9 degrees: exceeded by chance less than 1 time in 100,000


@pytest.mark.parametrize(
    "temperature, top_p, top_k",
    [(1, 1, 0), (0.6, 1, 0), (1, 0.9, 0), (1, 0.3, 0), (1, 1e-9, 0)]
    + [(1, 1, 7), (1.3, 0.5, 7), (1, 1, 1), (1, 1, 99)],
)
@pytest.mark.parametrize("words", [30, 300])
def test_draws_equal_brute_force_and_log_probs_are_of_the_full_distribution(words, temperature, top_p, top_k):
    logits = 2 * torch.randn(400, words, generator=torch.Generator().manual_seed(3))
    u = uniforms((1, 2), 400)
    tokens, logprobs = draw(logits, u, temperature, top_p, top_k)
    again = draw(logits.clone(), u, temperature, top_p, top_k, overwrite=True)
    assert again[0].equal(tokens) and again[1].equal(logprobs)
    probs = (logits.double() / temperature).softmax(-1)
    expected = [brute_force(p, x, top_p, top_k) for p, x in zip(probs.tolist(), u.tolist(), strict=True)]
    assert tokens.tolist() == expected
    full = probs[range(400), tokens].log()
    assert (logprobs.double() - full).abs().max() < 1e-5


def test_top_p_and_top_k_by_hand():
    """Of (.4 .1 .3 .2): the nucleus is the fewest that reach p, the one that crosses it included."""
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
    u = torch.linspace(0, LAST, 200, dtype=torch.float64)

    def drawn(**options):
        options = {"top_p": 1.0, "top_k": 0} | options
        return set(draw(logits.expand(200, -1), u, 1.0, **options)[0].tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_p=0.39) == {0}
    assert drawn(top_p=0.41) == {0, 2} == drawn(top_p=0.69)
    assert drawn(top_p=0.71) == {0, 2, 3} == drawn(top_p=0.89)
    assert drawn(top_k=1) == {0} and drawn(top_k=2) == {0, 2} and drawn(top_k=4) == {0, 1, 2, 3}
    assert drawn(top_k=2, top_p=0.56) == {0}  # of what top-k left, 0 holds .4 / .7 = .571
    assert drawn(top_k=2, top_p=0.58) == {0, 2}
    half = torch.tensor([0.5, 0.25, 0.25]).log()
    assert set(draw(half.expand(200, -1), u, 1.0, 0.5, 0)[0].tolist()) == {0}  # exactly p is enough


def test_top_p_and_top_k_keep_what_transformers_keeps():
    transformers = pytest.importorskip(
        "transformers", reason="transformers is the oracle: pip install -e .[oracle]"
    )
    logits = 2 * torch.randn(50, 40, generator=torch.Generator().manual_seed(4))
    u = torch.linspace(0, LAST, 500, dtype=torch.float64)
    for top_p, top_k in ((0.5, 0), (0.95, 0), (1.0, 5), (0.8, 5)):
        warped = logits
        if top_k:
            warped = transformers.TopKLogitsWarper(top_k)(None, warped)
        if top_p < 1:
            warped = transformers.TopPLogitsWarper(top_p)(None, warped)
        expected = warped.softmax(-1)
        for row in range(50):
            found = draw(logits[row].expand(500, -1), u, 1.0, top_p, top_k)[0].bincount(minlength=40) / 500
            assert (found - expected[row]).abs().max() < 0.005


def test_temperature_zero_is_greedy_with_the_log_probs_of_temperature_one(model):
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(5))
    for u in (0.0, 0.5, LAST):
        tokens, logprobs = draw(logits, torch.full((20,), u, dtype=torch.float64), 0.0, 1.0, 0)
        assert tokens.tolist() == [max(range(9), key=row.__getitem__) for row in logits.tolist()]
        assert (logprobs - logits.log_softmax(-1).max(-1).values).abs().max() < 1e-6
    prompt = some_tokens(random.Random(9), 5)
    sample = generate(model, [prompt], max_new_tokens=20, temperature=0.0, seed=1)[0]
    assert sample.tokens == generate(model, [prompt], max_new_tokens=20, temperature=0.0, seed=2)[0].tokens
    row = Row(prompt, ())
    for token, logprob in zip(sample.tokens, sample.logprobs, strict=True):
        row.take(Event(0, token, logprob))
    tokens = torch.tensor([row.tokens])
    mask = torch.tensor([row.sampled])
    for temperature in (0.0, 1.0):
        with torch.no_grad():
            expected = token_logprobs(model, tokens, mask=mask, temperature=temperature)[0, 5:]
        assert sample.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


# -- generate ------------------------------------------------------------------------------------------------


def test_stop_ids_end_a_sample_and_belong_to_it(model):
    rng = random.Random(10)
    prompts = [some_tokens(rng, n) for n in (4, 9, 2)]
    free = generate(model, prompts, max_new_tokens=40, seed=3)
    assert [s.finish for s in free] == ["length"] * 3 and all(len(s.tokens) == 40 for s in free)
    stop = (free[0].tokens[7], free[1].tokens[0])
    stopped = generate(model, prompts, max_new_tokens=40, seed=3, stop_ids=stop)
    for s, f in zip(stopped, free, strict=True):
        ends = [t for t, token in enumerate(f.tokens) if token in stop]
        count = ends[0] + 1 if ends else 40
        assert s.tokens == f.tokens[:count] and len(s.logprobs) == count
        assert s.finish == ("stop" if ends else "length")
    assert len(stopped[1].tokens) == 1  # ended by its very first token
    # a stop id that comes as the last allowed token still is a stop
    count = len(stopped[0].tokens)
    assert generate(model, prompts, max_new_tokens=count, seed=3, stop_ids=stop)[0].finish == "stop"


def test_generate_of_nothing(model):
    assert generate(model, [], max_new_tokens=5) == []
    assert generate(model, [[1], [2]], max_new_tokens=0) == [Sample([], [], "length")] * 2
    assert [len(s.tokens) for s in generate(model, [[1], [2, 3]], max_new_tokens=1)] == [1, 1]


def test_the_seed_and_the_place_decide_the_sample(model):
    prompts = [[1, 2, 3]] * 3
    a, b = (generate(model, prompts, max_new_tokens=15, seed=seed) for seed in (0, 1))
    assert len({tuple(s.tokens) for s in a + b}) == 6
    assert_same(generate(model, prompts[:2], max_new_tokens=15, seed=0), a[:2])


def test_greedy_samples_equal_transformers(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is the oracle: pip install -e .[oracle]"
    )
    models.save(small_model(3), tmp_path / "model")
    oracle = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ours = models.load(tmp_path / "model")
    rng = random.Random(11)
    prompts = [some_tokens(rng, n) for n in (5, 21, 1, 12, 5)]
    expected = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        answer = oracle.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        expected.append(answer[0, len(prompt) :].tolist())
    assert all(len(set(tokens)) > 5 for tokens in expected)
    for slots in (None, 2):
        found = generate(ours, prompts, max_new_tokens=40, temperature=0.0, slots=slots)
        assert [s.tokens for s in found] == expected


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [dict(temperature=-0.1), dict(top_p=0.0), dict(top_p=1.1), dict(top_k=-1), dict(slots=0), dict(slots=-2)],
)
def test_options_out_of_range_are_refused(model, options):
    with pytest.raises(ValueError, match="expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, slots > 0"):
        Sampler(model, **{"slots": 2, "max_len": 10} | options)


def test_prompts_that_do_not_fit_are_refused(model):
    sampler = Sampler(model, slots=1, max_len=10)
    for prompt in ([], [1] * 10, [1] * 11):
        with pytest.raises(ValueError, match=f"a prompt of {len(prompt)} tokens; expected 1 to 9"):
            sampler.add(prompt, (0,))
    with pytest.raises(ValueError, match="a prompt of 0 tokens"):
        generate(model, [[1], []], max_new_tokens=3)
    assert sampler.free == 1  # nothing was admitted
    sampler.add([1] * 9, (0,))
    assert len(sampler.step()) == 1


def test_a_full_sampler_and_an_outgrown_row_are_refused(model):
    sampler = Sampler(model, slots=2, max_len=6)
    slots = [sampler.add([1, 2, 3], (0, i)) for i in range(2)]
    with pytest.raises(RuntimeError, match="all 2 slots are in use"):
        sampler.add([1], (0, 2))
    for _ in range(4):  # the last of these tokens needs no place: it is never fed
        assert len(sampler.step()) == 2
    with pytest.raises(RuntimeError, match="outgrew 6 tokens"):
        sampler.step()
    sampler.release(slots[0])
    sampler.release(slots[1])
    assert sampler.free == 2 and sampler.step() == []


def test_a_slot_is_extended_only_while_parked_parked_only_while_active_released_only_once(model):
    """park() of a parked slot and release() of a free one once moved somebody else's row."""
    sampler = Sampler(model, slots=3, max_len=20)
    a, b = (sampler.add([1, 2, i], (0, i)) for i in range(2))
    with pytest.raises(RuntimeError, match=f"slot {a} is not parked"):
        sampler.extend(a, [1])
    sampler.step()
    sampler.park(a)
    with pytest.raises(RuntimeError, match=f"slot {a}"):
        sampler.park(a)
    with pytest.raises(ValueError, match="17 more tokens do not fit into 20"):
        sampler.extend(a, [1] * 17)
    sampler.extend(a, [1] * 4)
    sampler.release(b)
    for method in (sampler.release, sampler.park, lambda slot: sampler.extend(slot, [1])):
        with pytest.raises(RuntimeError, match=f"slot {b}"):
            method(b)
    assert [e.slot for e in sampler.step()] == [a] and sampler.free == 2


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("tokens_per_pass", [5, 1024])
def test_both_engines_give_the_same_tokens_and_logprobs(model, onednn, tokens_per_pass, monkeypatch):
    """model.py's own forward and the packed one, over prompts of odd lengths, copies and a tool's result, in
    either library's layout, in one pass and in many."""
    monkeypatch.setattr(cpu, "onednn_is_faster", lambda weight: onednn)
    monkeypatch.setattr(cpu, "PASS", tokens_per_pass)
    monkeypatch.setattr(cpu.Packed, "packed", weakref.WeakKeyDictionary())
    passes, once = [], cpu.Packed._pass
    monkeypatch.setattr(cpu.Packed, "_pass", lambda self, parts: passes.append(parts) or once(self, parts))
    runs = []
    for engine in (sample.Plain, cpu.Packed):
        sampler = Sampler(model, slots=5, max_len=60, temperature=0.0)
        sampler.engine = engine(model, sampler.cache)
        rng = random.Random(3)
        prompts = [some_tokens(rng, n) for n in (1, 7, 7, 19)]
        slots = [sampler.add(p, (i,)) for i, p in enumerate([*prompts, prompts[1]])]
        seen = {slot: [] for slot in slots}
        for step in range(20):
            for event in sampler.step():
                seen[event.slot].append((event.token, event.logprob))
            if step == 6:
                sampler.park(slots[2])
            if step == 9:
                sampler.extend(slots[2], some_tokens(rng, 11))
        runs.append(seen)
    plain, packed = runs
    assert (len(passes) > 20) == (tokens_per_pass < 20)  # 20 steps
    for slot in plain:
        assert [t for t, _ in plain[slot]] == [t for t, _ in packed[slot]]
        assert max(abs(a - b) for (_, a), (_, b) in zip(plain[slot], packed[slot], strict=True)) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_samples_follow_the_optimiser(fused, engine):
    """A fused optimiser does not advance the tensors' version counters: packed weights once stayed behind,
    and PPO sampled from the policy of its first step."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    sampler = Sampler(model, slots=1, max_len=40, temperature=0.0)
    for _ in range(3):
        slot = sampler.add([1, 2, 3], (0,))
        tokens = [event.token for _ in range(20) for event in sampler.step()]
        sampler.release(slot)
        row = torch.tensor([[1, 2, 3, *tokens]])
        assert model.head(model(row))[0, 2:-1].argmax(-1).tolist() == tokens
        assert tokens == generate(model, [[1, 2, 3]], max_new_tokens=20, temperature=0.0)[0].tokens
        optimizer.zero_grad()
        token_logprobs(model, row).sum().backward()
        optimizer.step()


def test_a_long_prompt_is_fed_in_pieces_beside_the_others(model, engine, monkeypatch):
    """No step feeds more than CHUNK tokens of a prompt; rows that decode go on meanwhile, and a second sample
    of the same prompt waits and copies it."""
    prompts = {(0, 0): [5, 6], (0, 1): some_tokens(random.Random(1), 30)}
    prompts[0, 2] = prompts[0, 1]
    alone = {key: continued(model, {key: prompt}, [key], 12)[key] for key, prompt in prompts.items()}
    monkeypatch.setattr(sample, "CHUNK", 8)
    sampler = Sampler(model, slots=3, max_len=64)
    rows = {sampler.add(prompt, key): Row(prompt, key) for key, prompt in prompts.items()}
    fed, feed = [], sampler.engine.feed
    sampler.engine.feed = lambda parts: fed.append([p.tokens.shape[1] for p in parts]) or feed(parts)
    for _ in range(16):
        for event in sampler.step():
            rows[event.slot].take(event)
    assert fed[:4] == [[2, 8], [1, 8], [1, 8], [1, 6]]
    assert [len(row.tokens) - len(prompts[row.key]) for row in rows.values()] == [16, 13, 13]
    for row in rows.values():
        whole = alone[row.key]
        assert row.tokens[: len(whole)] == whole


def test_a_step_on_the_device_changes_active_rows_only(model, monkeypatch):
    """What a CUDA graph replays computes a bucket of rows. Of those beyond the active ones, which are parked
    or wait, no length, pending token, key or value changes, but for the column that nobody reads."""
    use_flash(monkeypatch)
    sampler = Sampler(model, slots=6, max_len=30)
    for i in range(6):
        sampler.add([1, 2, 3 + i], (0, i))
    sampler.step()
    state = sampler.cache.lengths, sampler.pending, sampler.cache.kv[..., :-1, :]
    before = [x.clone() for x in state]
    tokens, logprobs = sampler._decode(torch.arange(6) < 4)
    assert len(tokens) == len(logprobs) == 6
    assert sampler.cache.lengths.tolist() == [4, 4, 4, 4, 3, 3]
    assert sampler.pending.tolist() == tokens[:4].tolist() + before[1][4:].tolist()
    changed = (state[2] != before[2]).any(dim=(0, 2, 4)).nonzero().tolist()  # (slot, position)
    assert changed == [[row, 3] for row in range(4)]


@pytest.mark.parametrize("patience", [0, 4])
def test_on_cuda_few_results_wait_for_some_steps_and_change_nothing(model, patience, monkeypatch):
    """9 rows decode and one has a result, twice: 4 steps go without it, the fifth feeds it."""
    use_flash(monkeypatch)
    monkeypatch.setattr(cuda, "PATIENCE", patience)
    rng = random.Random(2)
    sampler = Sampler(model, slots=10, max_len=60)
    rows = {}
    for i in range(10):
        row = Row(some_tokens(rng, 4), (0, i))
        rows[sampler.add(row.tokens, row.key)] = row
    fed, feed = [], sampler.engine.feed
    sampler.engine.feed = lambda parts: fed.append(step) or feed(parts)
    for step in range(24):
        if step in (6, 14):
            slot = next(iter(rows))
            sampler.park(slot)
            ids = some_tokens(rng, 5)
            rows[slot].give(ids)
            sampler.extend(slot, ids)
        events = sampler.step()
        waits = any(begin <= step < begin + patience for begin in (6, 14))
        assert len(events) == (9 if waits else 10)
        for event in events:
            rows[event.slot].take(event)
    assert fed == [0, 6 + patience, 14 + patience]
    for row in rows.values():
        explain(model, row.tokens, row.sampled, row.logprobs, row.key)


def test_a_float64_model_is_sampled_in_float64():
    model = small_model().double()
    sampler = Sampler(model, slots=1, max_len=20)
    sampler.add([1, 2, 3], (0,))
    sampler.step()
    assert sampler.cache.k.dtype == torch.float64
    (again,) = generate(small_model(), [[1, 2, 3]], max_new_tokens=1, temperature=0.0)
    (exact,) = generate(model, [[1, 2, 3]], max_new_tokens=1, temperature=0.0)
    assert exact.tokens == again.tokens and abs(exact.logprobs[0] - again.logprobs[0]) < 1e-5
