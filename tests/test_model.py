"""The decoder against transformers, the cache against the plain forward, folders against both.

Oracles: transformers on tiny random checkpoints (float32 logits within 1e-4, gradients, bfloat16 within its
own rounding); for the cache, the forward of one whole row. Weights are drawn much larger than a trained
model's, so that positions, biases and norms all matter and greedy answers do not collapse to one token.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from flash import use_flash
from safetensors.torch import load_file, save_file

import model as models
from fast import cpu, flash, packing, products
from fast.packing import Packing, families, packs
from loss import token_logprobs
from model import Config, KVCache, Qwen
from plumbing import folders
from plumbing.config import UsageError
from plumbing.ranks import World
from training.loading import load_model

torch.set_num_threads(1)  # these matrices are too small to share

SMALL = Config(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    rope_theta=10_000.0,
)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, norms and biases included; matrices get std 1.5/sqrt(fan_in), the rest 0.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            x = torch.randn(p.shape, generator=generator)
            scale = 0.5 if p.dim() < 2 else 1.5 / p.shape[1] ** 0.5
            p.copy_(x * scale + (1.0 if "norm" in name else 0.0))
    return module


def small_model(config: Config = SMALL, dtype=torch.float32) -> Qwen:
    return randomise(Qwen(config)).to(dtype).eval()


def tokens_like(shape, config: Config = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def full_logits(model: Qwen, row: torch.Tensor) -> torch.Tensor:
    """The oracle of every cache test: logits (T, V) of one row, alone, without a cache."""
    return model.head(model(row[None]))[0]


def greedy(model: Qwen, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """Greedy continuations of a ragged batch: one ragged prefill into the cache, then token by token."""
    longest = max(map(len, prompts))
    cache = KVCache(model.config, len(prompts), longest + steps)
    tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts])
    counts = torch.tensor([len(p) for p in prompts])
    hidden = model(tokens, cache, counts=counts)[range(len(prompts)), counts - 1]
    out = []
    for _ in range(steps):
        out.append(model.head(hidden).argmax(-1))
        hidden = model(out[-1][:, None], cache)[:, 0]
    return torch.stack(out, 1).tolist()


# -- against transformers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is the oracle: pip install -e .[oracle]")


def oracle_model(transformers, folder, *, shard: str = "5GB", dtype=torch.float32, **changes):
    """A random Qwen2 of transformers, saved to `folder` by transformers; changes go to its config."""
    shape = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        max_position_embeddings=512,
        eos_token_id=None,
    )
    config = transformers.Qwen2Config(**shape | changes)
    oracle = randomise(transformers.Qwen2ForCausalLM(config), seed=3).to(dtype).eval()
    oracle.save_pretrained(folder, max_shard_size=shard)
    return oracle


CHECKPOINTS = {
    "one query head per kv head, untied": dict(num_key_value_heads=6),
    "two per kv head, tied": dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "seven per kv head, untied": dict(hidden_size=56, num_attention_heads=14, num_key_value_heads=2),
    "seven heads, one kv head, tied": dict(
        hidden_size=112, num_attention_heads=7, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "odd sizes, theta 1e6": dict(
        vocab_size=131, hidden_size=66, num_attention_heads=3, num_key_value_heads=1, intermediate_size=37,
        num_hidden_layers=3, rope_theta=1e6, rms_norm_eps=1e-5,
    ),
    "sharded, theta 1e6": dict(shard="40KB", rope_theta=1e6),
    "sharded, tied": dict(shard="40KB", tie_word_embeddings=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_logits_equal_transformers(transformers, tmp_path, name):
    oracle = oracle_model(transformers, tmp_path, **CHECKPOINTS[name])
    assert ("sharded" in name) == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    model = models.load(tmp_path)
    tokens = tokens_like((3, 200), model.config)
    expected = oracle(tokens).logits
    assert expected.std() > 0.5  # else the bound says nothing
    assert (model.head(model(tokens)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["two per kv head, tied", "seven per kv head, untied", "sharded, theta 1e6"])
@torch.no_grad()
def test_greedy_continuations_equal_transformers_batched_and_alone(transformers, tmp_path, name):
    oracle = oracle_model(transformers, tmp_path, **CHECKPOINTS[name])
    model = models.load(tmp_path)
    prompts = [tokens_like((n,), model.config, seed=n).tolist() for n in (5, 17, 1, 30)]
    expected = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        answer = oracle.generate(tokens, attention_mask=tokens.ge(0), max_new_tokens=64, do_sample=False)
        expected.append(answer[0, len(prompt) :].tolist())
    assert all(len(set(answer)) > 5 for answer in expected)
    assert greedy(model, prompts, 64) == expected
    assert [greedy(model, [prompt], 64)[0] for prompt in prompts] == expected


@torch.no_grad()
def test_far_positions_equal_transformers(transformers, tmp_path):
    """4,000 tokens in: an error of one part in a million in a rotary frequency would show here."""
    oracle = oracle_model(transformers, tmp_path, rope_theta=1e6, max_position_embeddings=8192)
    model = models.load(tmp_path)
    tokens = tokens_like((1, 4000), model.config)
    difference = (model.head(model(tokens)) - oracle(tokens).logits).abs()
    assert difference[0, -100:].max() <= 1e-4


def test_gradients_equal_transformers(transformers, tmp_path):
    for changes in (dict(tie_word_embeddings=True), dict(num_key_value_heads=6)):
        oracle = oracle_model(transformers, tmp_path, **changes)
        model = models.load(tmp_path)
        tokens = tokens_like((2, 50), model.config)
        weights = torch.randn(2, 50, 97, generator=torch.Generator().manual_seed(5)) / 50
        (model.head(model(tokens)) * weights).sum().backward()
        (oracle(tokens).logits * weights).sum().backward()
        expected = dict(oracle.named_parameters())
        for name, p in model.named_parameters():
            scale = expected[name].grad.abs().max().clamp(min=1e-3)
            assert (p.grad - expected[name].grad).abs().max() <= 1e-4 * scale, name


@torch.no_grad()
def test_bfloat16_agrees_within_its_own_rounding(transformers, tmp_path):
    """In bfloat16 two correct programs differ by rounding: ours may be no further from the float32 answer."""
    oracle = oracle_model(transformers, tmp_path, dtype=torch.bfloat16)
    model = models.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tokens = tokens_like((2, 100), model.config)
    exact = models.load(tmp_path, dtype=torch.float32)
    exact = exact.head(exact(tokens))
    theirs = oracle(tokens).logits.float()
    ours = model.head(model(tokens))
    assert ours.dtype == torch.float32
    rounding = (theirs - exact).square().mean().sqrt()
    assert rounding > 1e-3
    assert (ours - exact).square().mean().sqrt() <= 1.1 * rounding
    assert (ours - theirs).square().mean().sqrt() <= 2 * rounding


# -- numerics ------------------------------------------------------------------------------------------------


def test_gradient_equals_finite_differences():
    """The slope of a random function of the logits along a random direction of all parameters."""
    model = small_model()
    tokens = tokens_like((2, 20))
    weights = torch.randn(2, 20, 97, generator=torch.Generator().manual_seed(5)).double()
    directions = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(6)) for p in model.parameters()
    ]

    def value(step: float) -> torch.Tensor:
        with torch.no_grad():
            moved = [p + step * d for p, d in zip(model.parameters(), directions, strict=True)]
            named = dict(zip([n for n, _ in model.named_parameters()], moved, strict=True))
            hidden = torch.func.functional_call(model, named, (tokens,))
            return (torch.nn.functional.linear(hidden, named["lm_head.weight"]).double() * weights).sum()

    (model.head(model(tokens)).double() * weights).sum().backward()
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), directions, strict=True)).item()
    estimate = ((value(1e-4) - value(-1e-4)) / 2e-4).item()
    assert abs(slope) > 10
    assert estimate == pytest.approx(slope, rel=1e-3)


def test_norms_are_computed_in_float32():
    """The bfloat16 output is the exact result rounded once; a mean taken in bfloat16 would be off by ulps."""
    x = (torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    norm = models.RMSNorm(4096, 1e-6).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    assert (norm(x) == exact.float().bfloat16()).float().mean() > 0.999


@pytest.mark.parametrize("theta", [1e4, 1e6, 123.0])
def test_rotary_tables_equal_transformers_bit_by_bit(transformers, theta):
    config = replace(SMALL, hidden_size=6 * 128, rope_theta=theta)
    oracle = transformers.Qwen2Config(
        hidden_size=6 * 128,
        num_attention_heads=6,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    embedding = transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding(oracle)
    positions = torch.arange(3000)[None]
    for ours, theirs in zip(
        models.rotary(positions, config), embedding(torch.zeros(1), positions), strict=True
    ):
        assert ours[:, 0].equal(theirs)


def test_rotary_is_computed_in_float32():
    """1,000 and 1,001 are one number in bfloat16: with rounded angles they would be one position."""
    cos, sin = models.rotary(torch.tensor([[1000, 1001]]), SMALL)
    assert cos.dtype == sin.dtype == torch.float32
    half = torch.arange(0, 8, 2).double()
    angles = torch.tensor([1000.0, 1001.0]).double()[:, None] * 10_000.0 ** (-half / 8)
    assert (cos[0, 0, :, :4] - angles.cos()).abs().max() < 1e-4
    x = torch.randn(1, 5, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    pairs = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    rounded_once = torch.cat([pairs.real, pairs.imag], -1).float().bfloat16()
    assert models.rotate(x, cos, sin).dtype == torch.bfloat16
    assert (models.rotate(x, cos, sin) == rounded_once).float().mean() > 0.95


# -- the cache: every way of feeding tokens gives the numbers of the whole row -------------------------------


def assert_equal_to_full(model, rows, outputs, tolerance=1e-4):
    """outputs[b], the logits (T_b, V) collected for rows[b], against that row alone in one forward."""
    for row, logits in zip(rows, outputs, strict=True):
        expected = full_logits(model, row)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() <= tolerance


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@torch.no_grad()
def test_one_token_at_a_time_equals_the_full_forward(kv_heads):
    config = replace(SMALL, num_key_value_heads=kv_heads)
    model = small_model(config)
    rows = tokens_like((3, 40))
    cache = KVCache(config, 3, 40)
    steps = [model.head(model(rows[:, t : t + 1], cache))[:, 0] for t in range(40)]
    assert_equal_to_full(model, rows, torch.stack(steps, 1))
    assert cache.lengths.tolist() == [40] * 3


@pytest.mark.parametrize("padding", [0, 96])
@pytest.mark.parametrize("addressing", ["all", "slice", "index", "out of order"])
@torch.no_grad()
def test_ragged_chunks_equal_the_full_forward(addressing, padding):
    """Chunks of random sizes, none included, as prefill, decode and tool results mix in the sampler."""
    model = small_model()
    slots = {"all": [0, 1, 2, 3], "slice": [2, 3, 4, 5], "index": [1, 2, 4, 6], "out of order": [5, 0, 6, 2]}
    slots = slots[addressing]
    selection = {"all": None, "slice": slice(2, 6)}.get(addressing, torch.tensor(slots))
    generator = torch.Generator().manual_seed(7)
    rows = [tokens_like((n,), seed=n) for n in (50, 33, 41, 60)]
    cache = KVCache(SMALL, 7 if addressing != "all" else 4, 60)
    outputs, done = [[] for _ in rows], [0] * 4
    while any(d < len(r) for d, r in zip(done, rows, strict=True)):
        sizes = torch.randint(0, 12, (4,), generator=generator).tolist()
        counts = [min(s, len(r) - d) for s, r, d in zip(sizes, rows, done, strict=True)]
        chunk = torch.full((4, max(*counts, 1)), padding)
        for b, n in enumerate(counts):
            chunk[b, :n] = rows[b][done[b] : done[b] + n]
        logits = model.head(model(chunk, cache, rows=selection, counts=torch.tensor(counts)))
        for b, n in enumerate(counts):
            outputs[b].append(logits[b, :n])
            done[b] += n
        assert cache.lengths[slots].tolist() == done
    assert_equal_to_full(model, rows, [torch.cat(o) for o in outputs])
    unused = sorted(set(range(cache.lengths.shape[0])) - set(slots))
    assert cache.lengths[unused].sum() == 0 and not cache.k[:, unused].any()


@torch.no_grad()
def test_width_may_be_given_and_may_be_larger_than_needed():
    """Keys beyond a row's end hold what an earlier, longer row left there; they are never seen."""
    model = small_model()
    cache = KVCache(SMALL, 2, 64)
    model(tokens_like((2, 64), seed=9), cache)
    cache.lengths.zero_()
    rows = tokens_like((2, 21))
    first = model.head(model(rows[:, :20], cache, width=64))
    last = model.head(model(rows[:, 20:], cache, width=32))
    assert_equal_to_full(model, rows, torch.cat([first, last], 1))


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours():
    """Other rows' tokens, lengths and padding: replaced by others, the row's numbers stay."""
    model = small_model()
    row = tokens_like((30,))
    results = []
    for seed, length in ((1, 30), (2, 60), (3, 7)):
        cache = KVCache(SMALL, 3, 64)
        width = max(30, length)
        tokens = tokens_like((3, width), seed=seed)
        tokens[1, :30] = row
        counts = torch.tensor([length, 30, length])
        results.append(model.head(model(tokens, cache, counts=counts))[1, :30])
    assert all((r - full_logits(model, row)).abs().max() <= 1e-4 for r in results)


@torch.no_grad()
def test_padding_on_the_right_never_changes_the_full_forward():
    model = small_model()
    row = tokens_like((25,))
    for seed in (1, 2):
        padded = torch.cat([row, tokens_like((15,), seed=seed)])
        assert (full_logits(model, padded)[:25] - full_logits(model, row)).abs().max() <= 1e-5


@pytest.mark.parametrize("lengths", [[3, 4], [3, 4, 0], [3, 4, 31]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="of 3 rows of 30 tokens; expected 3 from 1 to 30"):
        Packing(tokens_like((3, 30)), lengths)


def test_who_has_a_forward_or_a_head_of_their_own_does_not_pack():
    class Soft(Qwen):
        def head(self, hidden):
            return super().head(hidden).tanh()

    model = small_model()
    assert packs(model) and not packs(Soft(SMALL)) and not packs(torch.nn.Linear(2, 2))
    model.head = lambda hidden: 2 * Qwen.head(model, hidden)
    assert not packs(model)


def test_a_cache_may_be_used_with_gradients():
    """Its halves are slices of one tensor; of tensors from split(), autograd refuses to store into them."""
    model = small_model()
    rows = tokens_like((2, 9))
    assert_equal_to_full(model, rows, model.head(model(rows, KVCache(SMALL, 2, 9))))


CPUS = {
    "Zen 5": ({"cpu_name": "AMD EPYC", "avx512_f": True}, (True, True, True)),
    "Zen 3": ({"cpu_name": "AMD EPYC"}, (False, True, True)),
    "Xeon": ({"cpu_name": "Intel Xeon", "avx512_f": True}, (False, False, True)),
}


@pytest.mark.parametrize("name", CPUS)
def test_which_library_multiplies(name, monkeypatch):
    """In training; in sampling, small weights and large ones. bfloat16 is oneDNN's everywhere."""
    known, expected = CPUS[name]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    small, large = torch.empty(256, 1024), torch.empty(4864, 896)
    found = products.mkl_is_slow.__wrapped__(), *map(cpu.onednn_is_faster, (small, large))
    assert found == expected and cpu.onednn_is_faster(small.bfloat16())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 400)])
def test_onednns_products_are_float32s(bias, shape):
    """On this CPU too: where a library rounds to bfloat16 on the way, the error is a thousand times that."""
    x = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(*shape, 96, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype in (torch.float32, torch.float64):
        layer = torch.nn.Linear(64, 96, bias=bias)
        for i, p in enumerate(layer.parameters()):
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
        layer, y = layer.to(dtype), x.to(dtype, copy=True).requires_grad_()
        apply = products.OneDNNProduct.apply if dtype == torch.float32 else F.linear
        found = apply(y, layer.weight, layer.bias)
        (found * upstream.to(dtype)).sum().backward()
        results.append([found, y.grad, *(p.grad for p in layer.parameters())])
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() <= 1e-6 * exact.norm()


def test_a_cpu_on_which_mkl_is_slow_computes_the_same(monkeypatch):
    rows = tokens_like((4, 30))
    found = []
    for slow in (False, True):
        monkeypatch.setattr(products, "mkl_is_slow", lambda slow=slow: slow)
        model = products.use_fast_products(small_model())
        assert model.state_dict().keys() == small_model().state_dict().keys()
        logits = model.head(model(rows))
        logits.square().mean().backward()
        found.append((logits, *(p.grad for p in model.parameters())))
    calls = []
    monkeypatch.setattr(products.OneDNNProduct, "apply", lambda *_: calls.append(1) or _[0] @ _[1].t())
    products.use_fast_products(small_model())(rows)
    assert len(calls) == 7 * SMALL.num_hidden_layers  # all products of the layers went that way
    for plain, other in zip(*found, strict=True):
        assert (plain - other).norm() <= 1e-5 * plain.norm()


# rows as (where the beginning comes from, its length, the row's length); lengths of rows; families by hand
RAGGED = {
    "nothing shared": ([(0, 0, 9), (0, 0, 30), (0, 0, 1)], [(0, [9]), (0, [30]), (0, [1])]),
    "one prompt": ([(0, 0, 20), (0, 8, 30), (0, 8, 9), (0, 8, 8)], [(8, [20, 30, 9, 8])]),
    "two prompts, one head": (
        [(0, 0, 20), (0, 12, 25), (0, 12, 14), (0, 3, 18), (3, 10, 30), (3, 10, 11)],
        [(12, [20, 25, 14]), (10, [18, 30, 11])],
    ),
    "a row of another prompt first": (
        [(0, 0, 20), (0, 3, 18), (1, 10, 30), (1, 10, 11)],
        [(0, [20]), (10, [18, 30, 11])],
    ),
    "equal rows": ([(0, 0, 12), (0, 12, 12), (0, 12, 12)], [(12, [12, 12, 12])]),
    "one is the beginning of the other": ([(0, 0, 7), (0, 7, 25)], [(7, [7, 25])]),
}


def ragged_rows(name: str) -> tuple[torch.Tensor, list[int], list]:
    """Tokens (B, 30), their lengths and their families."""
    specs, expected = RAGGED[name]
    rows = []
    for i, (source, shared, _) in enumerate(specs):
        row = tokens_like((30,), seed=i)
        if shared:
            row[:shared] = rows[source][:shared]
            row[shared:] = (
                rows[source][shared:] + 1 + i
            ) % SMALL.vocab_size  # differs from the next token on
        rows.append(row)
    return torch.stack(rows), [n for *_, n in specs], expected


@pytest.mark.parametrize("name", RAGGED)
def test_families_by_hand(name, monkeypatch):
    tokens, lengths, expected = ragged_rows(name)
    assert families(tokens, lengths) == expected
    computed = sum(shared + sum(n - shared for n in rows) for shared, rows in expected)
    monkeypatch.setitem(packing.SAVES, "cpu", 2.0)
    assert Packing(tokens, lengths).tokens.shape == (1, computed)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("saves", [0.0, 0.8, 2.0])  # never packed, where it is worth it, always
@pytest.mark.parametrize("flash", [False, True])  # all rows in one call, as on CUDA
@pytest.mark.parametrize("name", RAGGED)
def test_packed_rows_equal_rows_alone(name, flash, saves, checkpointing, monkeypatch):
    """Hidden states and gradients: nothing of a neighbour, of padding or of sharing is left in them."""
    if flash:
        use_flash(monkeypatch)
    monkeypatch.setitem(packing.SAVES, "cpu", saves)
    tokens, lengths, _ = ragged_rows(name)
    upstream = torch.randn(*tokens.shape, SMALL.hidden_size, generator=torch.Generator().manual_seed(3))
    model, alone = small_model(), small_model()
    model.checkpointing = checkpointing
    p = Packing(tokens, lengths)
    hidden = model(p.tokens, positions=p.positions, attend=p.attend).flatten(0, 1)
    packed = sum(shared + sum(n - shared for n in rows) for shared, rows in RAGGED[name][1])
    whole = len(tokens) * max(lengths)
    assert len(hidden) == (whole if packed >= saves * whole else packed)
    hidden = hidden[p.place]
    for b, n in enumerate(lengths):
        expected = alone(tokens[b : b + 1, :n])[0]
        assert (hidden[b, :n] - expected).abs().max() <= 1e-5
        (expected * upstream[b, :n]).sum().backward()
    inside = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
    (hidden * upstream)[inside].sum().backward()
    wanted = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if name in wanted:
            assert (p.grad - wanted[name]).norm() <= 1e-5 * wanted[name].norm().clamp(min=1e-3), name


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_nothing_to_train_gives_no_gradient(rows, flash, monkeypatch):
    """Of rows that are all masked only the first token is read, the same in all of them: those but the first
    have no query at all. Without rows, a made-up one takes part in the backward pass."""
    if flash:
        use_flash(monkeypatch)
    model, tokens = small_model(), tokens_like((30,), seed=0).expand(rows, -1)
    assert model(tokens).shape == (rows, 30, SMALL.hidden_size)
    found = token_logprobs(model, tokens, mask=torch.zeros(rows, 30, dtype=torch.bool), entropy=True)
    assert all(x.shape == (rows, 30) and not x.any() for x in found)
    sum(x.sum() for x in found).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "change, fits",
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"is_cuda": False}, False),
    ]
    + [({"capability": (7, 5)}, False), ({"head_dim": 12}, False), ({"head_dim": 264}, False)],
)
def test_which_tensors_flash_attention_takes(change, fits, monkeypatch):
    given = {
        "is_cuda": True,
        "dtype": torch.bfloat16,
        "capability": (9, 0),
        "head_dim": 64,
        "device": 0,
    } | change
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given["capability"])
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert flash.flash_fits(SimpleNamespace(**given), given["head_dim"]) is fits


@torch.no_grad()
def test_copied_prompt_equals_recomputation():
    """A group of samples shares one prefill: to one row, and to several at once."""
    model = small_model()
    prompt, answers = tokens_like((23,)), tokens_like((4, 10), seed=8)
    cache = KVCache(SMALL, 6, 40)
    model(tokens_like((6, 40), seed=9), cache)  # what earlier episodes left behind
    cache.lengths.zero_()
    model(prompt[None], cache, rows=slice(3, 4))
    for row in (5, 0, 1):
        cache.copy_row(3, row, 23)
    assert cache.lengths.tolist() == [23, 23, 0, 23, 0, 23]
    logits = model.head(model(answers, cache, rows=torch.tensor([5, 0, 1, 3])))
    for b in range(4):
        expected = full_logits(model, torch.cat([prompt, answers[b]]))[23:]
        assert (logits[b] - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_swapped_rows_equal_recomputation():
    model = small_model()
    first, second = tokens_like((23,)), tokens_like((9,), seed=8)
    cache = KVCache(SMALL, 3, 40)
    model(first[None], cache, rows=slice(0, 1))
    model(second[None], cache, rows=slice(2, 3))
    cache.swap_rows(0, 2, 23)
    assert cache.lengths.tolist() == [9, 0, 23]
    more = tokens_like((2, 5), seed=4)
    logits = model.head(model(more, cache, rows=torch.tensor([0, 2])))
    for b, row in enumerate((second, first)):
        expected = full_logits(model, torch.cat([row, more[b]]))[len(row) :]
        assert (logits[b] - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_bfloat16_cache_agrees_with_the_full_forward_within_rounding():
    model = small_model(dtype=torch.bfloat16)
    rows = tokens_like((2, 40))
    exact = small_model()
    exact = torch.stack([full_logits(exact, row) for row in rows])
    cache = KVCache(SMALL, 2, 40, dtype=torch.bfloat16)
    parts = [model.head(model(rows[:, a : a + 8], cache)) for a in range(0, 40, 8)]
    rounding = (model.head(model(rows)) - exact).square().mean().sqrt()
    assert (torch.cat(parts, 1) - exact).square().mean().sqrt() <= 1.3 * rounding


@torch.no_grad()
def test_a_row_that_outgrows_the_cache_is_refused():
    """One token too many once fell into the column for padding, and was read back as if it belonged there."""
    cache = KVCache(SMALL, 1, 10)
    with pytest.raises(ValueError, match="11 tokens do not fit into a cache of 10"):
        small_model()(tokens_like((1, 11)), cache)


# -- checkpoint folders: what loads --------------------------------------------------------------------------


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def assert_same_weights(model, expected: dict[str, torch.Tensor]):
    found = weights_of(model)
    assert found.keys() == expected.keys()
    for name, p in found.items():
        assert p.dtype == expected[name].dtype and torch.equal(p, expected[name]), name


def edit_config(folder, **changes):
    """Change entries of folder/config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder, edit):
    """Rewrite folder/model.safetensors after `edit(tensors)` changed the dict."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A small saved checkpoint in one file."""
    models.save(small_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """The same in shards of 40 kB."""
    monkeypatch.setattr(folders, "SHARD_BYTES", 40_000)
    models.save(small_model(), tmp_path / "shards")
    return tmp_path / "shards"


def test_both_spellings_of_the_rotary_base_are_read(folder):
    edit_config(folder, rope_theta=123.0)
    assert models.read_config(folder).rope_theta == 123.0
    edit_config(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 456.0})
    assert models.read_config(folder).rope_theta == 456.0
    edit_config(folder, rope_theta=123.0)  # both: the inner one, as transformers does
    assert models.read_config(folder).rope_theta == 456.0
    edit_config(folder, rope_theta=None, rope_parameters=None)
    assert models.read_config(folder).rope_theta == 10_000.0


def test_a_published_config_is_read_as_it_is(tmp_path):
    """The entries of the published Qwen2.5-0.5B-Instruct, from its config.json."""
    published = dict(
        architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645,
        hidden_act="silu", hidden_size=896, initializer_range=0.02, intermediate_size=4864,
        max_position_embeddings=32768, max_window_layers=21, model_type="qwen2", num_attention_heads=14,
        num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0,
        sliding_window=32768, tie_word_embeddings=True, torch_dtype="bfloat16", transformers_version="4.43.1",
        use_cache=True, use_sliding_window=False, vocab_size=151936,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert models.read_config(tmp_path) == Config(
        151936, 896, 4864, 24, 14, 2, 1e-6, 1e6, tie_word_embeddings=True, max_position_embeddings=32768
    )


def test_dual_chunk_attention_settings_are_accepted_with_one_line(folder, capsys):
    edit_config(folder, dual_chunk_attention_config={"chunk_size": 262144, "local_size": 8192})
    models.load(folder)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_load_gives_back_what_was_saved(source, request):
    """Bit for bit, trainable; and training does not touch the file that the weights are mapped from."""
    folder = request.getfixturevalue(source)
    model, original = models.load(folder), weights_of(small_model())
    assert model.config == SMALL
    assert_same_weights(model, original)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert_same_weights(models.load(folder), original)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_dtypes_are_kept_or_converted(tmp_path, stored, wanted):
    models.save(small_model(dtype=stored), tmp_path / "x")
    expected = {name: p.to(stored).to(wanted or stored) for name, p in weights_of(small_model()).items()}
    assert_same_weights(models.load(tmp_path / "x", dtype=wanted), expected)


def test_a_folder_in_two_dtypes_needs_to_be_told_which(folder):
    edit_weights(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].half()}))
    with pytest.raises(folders.CheckpointError, match="holds torch.float16 and torch.float32; expected one"):
        models.load(folder)
    assert {p.dtype for p in models.load(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_only_the_files_that_the_index_names_are_read(shards):
    """Another tool's copy has no say; a shard that nothing names may be half of another model."""
    expected = weights_of(models.load(shards))
    save_file({"other": torch.zeros(3)}, shards / "adapter_model.safetensors")
    assert_same_weights(models.load(shards), expected)
    save_file({"stale": torch.zeros(3)}, shards / "model-00099-of-00099.safetensors")
    with pytest.raises(
        folders.CheckpointError, match="extra shard model-00099-of-00099.safetensors; expected"
    ):
        models.load(shards)


def test_one_file_may_have_an_index(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(weights_of(small_model()), "model.safetensors")})
    )
    assert_same_weights(models.load(folder), weights_of(small_model()))
    for text, message in (
        ("{", "not JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ('{"weight_map": ["a"]}', "expected weight_map, an object of tensor names"),
        ('{"weight_map": {}}', "expected weight_map, an object of tensor names"),
    ):
        index.write_text(text)
        with pytest.raises(folders.CheckpointError, match=f"{index.name}: {message}"):
            models.load(folder)


def test_a_dtype_that_contradicts_its_bytes_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F16"', 1))
    with pytest.raises(
        folders.CheckpointError, match=f"{file.name}: not a whole .* invalid shape, data type"
    ):
        models.load(folder)


def test_a_tied_checkpoint_may_store_the_head_again(tmp_path):
    tied = replace(SMALL, tie_word_embeddings=True)
    models.save(small_model(tied), tmp_path / "x")
    head = "lm_head.weight"
    edit_weights(tmp_path / "x", lambda t: t.update({head: t["model.embed_tokens.weight"].clone()}))
    model = models.load(tmp_path / "x")
    assert_same_weights(model, weights_of(small_model(tied)))
    edit_weights(tmp_path / "x", lambda t: t[head].add_(1))
    with pytest.raises(
        folders.CheckpointError, match="lm_head.weight is not the embedding, but config.json ties"
    ):
        models.load(tmp_path / "x")


@pytest.mark.parametrize(
    "entries",
    [
        dict(use_sliding_window=True, sliding_window=16, max_window_layers=3, layer_types=None),
        dict(use_sliding_window=True, sliding_window=16, max_window_layers=28, layer_types=None),
        dict(use_sliding_window=True, sliding_window=16, layer_types=["full_attention"] * 3),
    ],
)
def test_a_window_that_no_layer_has_is_harmless(folder, entries):
    edit_config(folder, **entries)
    assert models.load(folder).config.to_json()["use_sliding_window"] is False
    assert not folders.slides(entries | {"sliding_window": None, "max_window_layers": 0})


def test_rotary_buffers_and_a_byte_order_mark_are_harmless(folder):
    """Older tools have saved the buffers, in float32 beside bfloat16 weights."""
    model, file, path = models.load(folder), folder / "model.safetensors", folder / "config.json"
    names = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq")
    kept = {name: x.bfloat16() for name, x in load_file(file).items()}
    save_file(kept | {name: torch.ones(4) for name in names}, file)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_same_weights(model.bfloat16(), weights_of(models.load(folder)))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 988097824\n"
OTHER_FOLDERS = {  # the files of a folder -> what is said
    "weights not fetched": ({"model.safetensors": POINTER}, "safetensors: a Git LFS pointer.*git lfs pull"),
    "config not fetched": ({"config.json": POINTER}, "config.json: a Git LFS pointer"),
    "adapter": (
        {"config.json": None, "adapter_config.json": '{"base_model_name_or_path": "B/C"}'},
        "an adapter of B/C, not a whole model; merge",
    ),
    "adapter beside a model": ({"adapter_config.json": "{}"}, "an adapter of None"),
    "pickle": ({"model.safetensors": None, "pytorch_model.bin": "x"}, "pytorch_model.bin, a pickle"),
    "pickles": ({"model.safetensors": None, "pytorch_model-00001-of-00002.bin": "x"}, "00002.bin, a pickle"),
    "old pickle": ({"model.safetensors": None, "consolidated.00.pth": "x"}, "00.pth, a pickle"),
    "GGUF": ({"config.json": None, "model.safetensors": None, "q4.gguf": "GGUF"}, "q4.gguf, a GGUF file"),
    "TensorFlow": ({"model.safetensors": None, "tf_model.h5": "x"}, "tf_model.h5, weights for another"),
    "shards alone": (
        {"model.safetensors": None, "model-00001-of-00002.safetensors": "x"},
        "found model-00001-of-00002.safetensors, of another name or without its index",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FOLDERS)
def test_a_folder_in_another_form_is_named_and_what_to_do(folder, name):
    files, said = OTHER_FOLDERS[name]
    for file, text in files.items():
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text)
    with pytest.raises(folders.CheckpointError, match=said) as error:
        models.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("Qwen/Qwen2.5-0.5B", "no such folder.*hf download Qwen/Qwen2.5-0.5B --local-dir DIR"),
        ("nowhere", "no such folder; expected a checkpoint folder or `tiny`$"),
        ("model.gguf", "a file; expected a checkpoint folder"),
    ],
)
def test_what_is_no_folder_is_named(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(UsageError, match=said):
        load_model(name, World("cpu"), "float32")


# -- checkpoint folders: what is refused ---------------------------------------------------------------------


REFUSED_CONFIGS = {
    "architecture": (dict(model_type="llama"), 'model_type is "llama".*expected "qwen2"'),
    "no architecture": (dict(model_type=None), 'model_type is null.*expected "qwen2"'),
    "activation": (dict(hidden_act="gelu"), 'hidden_act is "gelu".*expected "silu"'),
    "sliding window": (
        dict(use_sliding_window=True, sliding_window=16, max_window_layers=2, layer_types=None),
        "use_sliding_window is true.*expected false",
    ),
    "sliding layers": (
        dict(use_sliding_window=True, sliding_window=16, layer_types=["full_attention", "sliding_attention"]),
        "use_sliding_window is true.*expected false",
    ),
    "sliding layers without the switch": (
        dict(use_sliding_window=False, sliding_window=None, layer_types=["sliding_attention"] * 2),
        'layer_types has "sliding_attention".*expected "full_attention"',
    ),
    "yarn": (dict(rope_scaling={"type": "yarn", "factor": 4.0}), 'rope_scaling is .*"yarn".*expected null'),
    "linear": (dict(rope_parameters={"rope_type": "linear", "factor": 2.0}), "rope_scaling is .*linear"),
    "yarn beside the default": (
        dict(rope_scaling={"type": "yarn", "factor": 4.0}, rope_parameters={"rope_type": "default"}),
        'rope_scaling is .*"yarn".*expected null',
    ),
    "negative size": (dict(num_hidden_layers=-1), "num_hidden_layers is -1; expected a whole number above 0"),
    "no heads": (dict(num_attention_heads=0), "num_attention_heads is 0; expected a whole number above 0"),
    "size in quotes": (dict(hidden_size="48"), 'hidden_size is "48"; expected a whole number above 0'),
    "no base": (dict(rope_parameters={"rope_theta": None}), "rope_theta is null; expected a number above 0"),
    "base in quotes": (dict(rope_theta="1e4"), 'rope_theta is "1e4"; expected a number above 0'),
    "eps in quotes": (dict(rms_norm_eps="1e-6"), 'rms_norm_eps is "1e-6"; expected a number above 0'),
    "switch in quotes": (dict(tie_word_embeddings="false"), 'is "false"; expected true or false'),
    "quantised": (dict(quantization_config={"bits": 4}), "quantization_config is .*expected null"),
    "missing field": (dict(num_hidden_layers=None), "missing 1 required .*'num_hidden_layers'"),
    "heads": (dict(num_key_value_heads=4), "heads=6, kv_heads=4, head_dim=8 do not fit together"),
    "head_dim": (dict(head_dim=16), "width=48, heads=6, kv_heads=2, head_dim=16 do not fit together"),
}


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_a_config_that_is_not_implemented_is_refused(folder, name):
    changes, message = REFUSED_CONFIGS[name]
    edit_config(folder, **changes)
    with pytest.raises(folders.CheckpointError, match=message) as error:
        models.load(folder)
    assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_a_folder_without_a_readable_config_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "qwen2", ')
    with pytest.raises(folders.CheckpointError, match="config.json: not JSON"):
        models.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(folders.CheckpointError, match="config.json: holds a list; expected a JSON object"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(folders.CheckpointError, match="no config.json; expected a checkpoint folder"):
        models.load(folder)


NORM, GATE = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"
REFUSED_WEIGHTS = {
    "missing": (lambda t: t.pop(GATE), rf"missing tensor {GATE} of shape \[80, 48\]; 1 of 39 are missing"),
    "extra": (lambda t: t.update(visual=t[NORM].clone()), "extra tensor: visual, which config.json does not"),
    "misshaped": (
        lambda t: t.update({GATE: torch.zeros(48, 80)}),
        rf"{GATE} has shape \[48, 80\], expected \[80, 48\]",
    ),
    "integers": (
        lambda t: t.update({NORM: t[NORM].to(torch.int8)}),
        f"{NORM} is stored as torch.int8; expected torch.float32",
    ),
    "doubles": (
        lambda t: t.update({NORM: t[NORM].double()}),
        f"{NORM} is stored as torch.float64; expected torch.float32",
    ),
    "fp8": (
        lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)}),
        f"{NORM} is stored as torch.float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("name", REFUSED_WEIGHTS)
def test_a_tensor_that_does_not_fit_is_named(folder, name):
    edit, message = REFUSED_WEIGHTS[name]
    edit_weights(folder, edit)
    with pytest.raises(folders.CheckpointError, match=message):
        models.load(folder)


def test_an_untied_folder_without_its_head_is_refused(folder):
    edit_weights(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(folders.CheckpointError, match=r"missing tensor lm_head.weight of shape \[97, 48\]"):
        models.load(folder)


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_a_truncated_file_is_named_with_its_sizes(source, request):
    file = sorted(request.getfixturevalue(source).glob("*.safetensors"))[-1]
    size = file.stat().st_size
    for cut in (size - 1, size - 1000):
        os.truncate(file, cut)
        with pytest.raises(
            folders.CheckpointError, match=f"{file.name}: not a whole safetensors file, {cut:,} bytes"
        ):
            models.load(file.parent)
    for cut in (100, 5, 0):
        os.truncate(file, cut)
        with pytest.raises(folders.CheckpointError, match=f"{file.name}: not a whole safetensors file"):
            models.load(file.parent)
    file.write_text("version https://git-lfs.github.com/spec/v1")  # a clone without its large files
    with pytest.raises(folders.CheckpointError, match=f"{file.name}: a Git LFS pointer"):
        models.load(file.parent)


def test_missing_files_are_named(shards):
    names = sorted(f.name for f in shards.glob("*.safetensors"))
    assert len(names) > 3
    (shards / names[1]).rename(shards / "elsewhere")
    with pytest.raises(folders.CheckpointError, match=f"no {names[1]}, one of the {len(names)} shards in"):
        models.load(shards)
    (shards / "elsewhere").rename(shards / names[1])
    (shards / "model.safetensors").touch()
    with pytest.raises(folders.CheckpointError, match="found both, two models in one folder"):
        models.load(shards)
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").unlink()
    with pytest.raises(
        folders.CheckpointError, match="expected model.safetensors or .*index.json, found model-00001"
    ):
        models.load(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file(load_file(second) | {name: tensors[name]}, second)
    with pytest.raises(folders.CheckpointError, match=f"{second.name}: extra tensor: a second {name}"):
        models.load(shards)


# -- checkpoint folders: saving ------------------------------------------------------------------------------


class StandInTokenizer:
    """What save needs of a tokenizer."""

    stop_ids = (5, 7)
    generation = {"temperature": 0.7, "eos_token_id": 9}

    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize("shard_bytes", [folders.SHARD_BYTES, 40_000])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_transformers_loads_what_is_saved(transformers, tmp_path, monkeypatch, shard_bytes, tied, dtype):
    monkeypatch.setattr(folders, "SHARD_BYTES", shard_bytes)
    config = replace(SMALL, tie_word_embeddings=tied, rope_theta=1e6, rms_norm_eps=1e-5)
    model = small_model(config, dtype)
    models.save(model, tmp_path / "x", StandInTokenizer())
    files = {f.name: f.stat().st_size for f in (tmp_path / "x").iterdir()}
    assert ("model.safetensors.index.json" in files) == (shard_bytes == 40_000)
    assert ("model.safetensors" in files) == (shard_bytes != 40_000)
    sizes = [size for name, size in files.items() if name.endswith(".safetensors")]
    assert max(sizes) < shard_bytes + 10_000 and len(sizes) <= 2 * sum(sizes) / shard_bytes + 1
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert_same_weights(oracle, weights_of(model))
    assert oracle.config.eos_token_id == 5 and oracle.generation_config.eos_token_id == [5, 7]
    assert oracle.generation_config.temperature == 0.7, "the settings of the folder that was loaded"
    tokens = tokens_like((2, 60))
    difference = (oracle(tokens).logits.float() - model.head(model(tokens))).abs().max()
    assert difference <= (1e-4 if dtype == torch.float32 else 0.5)


@torch.no_grad()
def test_other_config_entries_survive(transformers, tmp_path):
    """A published folder, loaded, trained and saved: what other tools read is still there."""
    oracle_model(transformers, tmp_path / "a", rope_theta=1e6)
    edit_config(
        tmp_path / "a", max_window_layers=21, sliding_window=32768, attention_dropout=0.0, eos_token_id=3
    )
    model = models.load(tmp_path / "a", dtype=torch.bfloat16)
    models.save(model, tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["max_window_layers"] == 21 and written["eos_token_id"] == 3
    assert written["rope_theta"] == 1e6 and written["torch_dtype"] == "bfloat16"
    assert not {"dtype", "rope_parameters", "extra", "layer_types"} & written.keys()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert oracle.config.rope_parameters["rope_theta"] == 1e6
    assert_same_weights(oracle, weights_of(model))


def test_a_crash_while_saving_leaves_the_old_folder(folder, monkeypatch):
    """Wherever it happens; what it leaves behind is gone after the next save."""
    monkeypatch.setattr(folders, "SHARD_BYTES", 40_000)
    original, better = weights_of(models.load(folder)), randomise(Qwen(SMALL), seed=9)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    def crash_later(tensors, path, metadata):
        crash() if "00003" in path.name else save_file(tensors, path, metadata)

    for name, function in (("write_json", crash), ("save_file", crash_later), ("exchange", crash)):
        with monkeypatch.context() as patch:
            patch.setattr(folders, name, function)
            with pytest.raises(KeyboardInterrupt):
                models.save(better, folder)
        assert_same_weights(models.load(folder), original)
    (folder.parent / ".model.tmp").mkdir()  # a killed process cannot tidy up
    (folder.parent / ".model.tmp" / "model.safetensors").touch()
    models.save(better, folder)
    assert_same_weights(models.load(folder), weights_of(better))
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("one_step", [True, False])
def test_a_folder_is_replaced_as_a_whole(shards, monkeypatch, one_step):
    """Also where two folders cannot be exchanged in one step, and by the model that is mapped from it."""
    if not one_step:
        monkeypatch.setattr(folders.ctypes, "CDLL", lambda name: object())
    model = models.load(shards)
    monkeypatch.setattr(folders, "SHARD_BYTES", 10**9)
    models.save(model, shards)
    assert sorted(os.listdir(shards)) == ["config.json", "model.safetensors"]
    assert os.listdir(shards.parent) == ["shards"]
    assert_same_weights(models.load(shards), weights_of(small_model()))


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="home: exists and is not a checkpoint"):
        models.save(small_model(), tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    models.save(small_model(), tmp_path / "empty")
    models.save(small_model(), tmp_path / "not" / "yet" / "there")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file: exists and is not a checkpoint"):
        models.save(small_model(), tmp_path / "file")


def test_without_a_tokenizer_the_replaced_folders_files_stay(shards, monkeypatch):
    """Its tokenizer and settings, that is; its shards and their index go."""
    for name in ("tokenizer.json", "generation_config.json", "merges.txt", "chat_template.jinja"):
        (shards / name).write_text(f'"{name}"')
    (shards / "optimizer.pt").touch()
    models.save(models.load(shards), shards)
    assert (shards / "tokenizer.json").read_text() == '"tokenizer.json"'
    monkeypatch.setattr(folders, "SHARD_BYTES", 10**9)
    models.save(models.load(shards), shards)
    found = ["chat_template.jinja", "config.json", "generation_config.json", "merges.txt"]
    assert sorted(os.listdir(shards)) == [*found, "model.safetensors", "tokenizer.json"]


# -- memory --------------------------------------------------------------------------------------------------


MEASURE = """
import sys, torch
import model as models
def resident(key):  # getrusage would count what the parent held before exec
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024
def load(folder):
    loaded = models.load(folder, dtype=getattr(torch, sys.argv[3]))
    for p in loaded.parameters():
        p.detach().view(torch.uint8).max()  # reads every page
    return loaded
load(sys.argv[1])  # a small one: what Torch needs once, 80 MB of code
before = resident("VmRSS")
loaded = load(sys.argv[2])
print((resident("VmHWM") - before) / sum(p.nbytes for p in loaded.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc")
def test_loading_keeps_no_second_copy(folder, tmp_path):
    """Peak resident memory of a fresh process over what the weights need: 220 MB, stored as float32. The
    least of three measurements, since noise only adds memory."""
    config = replace(SMALL, vocab_size=30_000, hidden_size=384, intermediate_size=2048, num_hidden_layers=11)
    models.save(Qwen(config), tmp_path / "x")
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "x")]
    ratios = {}
    for _ in range(3):
        wanted = [dtype for dtype in ("float32", "bfloat16") if not 0.95 < ratios.get(dtype, 2) <= 1.15]
        running = [subprocess.Popen([*command, dtype], stdout=subprocess.PIPE, text=True) for dtype in wanted]
        ratios |= {dtype: float(run.communicate()[0]) for dtype, run in zip(wanted, running, strict=True)}
    assert all(0.95 < ratio <= 1.15 for ratio in ratios.values()), ratios
