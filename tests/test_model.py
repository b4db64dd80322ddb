"""The decoder against transformers, the cache against the plain forward, folders against both.

Oracles: transformers on tiny random checkpoints (float32 logits within 1e-4, gradients, bfloat16 within its
own rounding); for the cache, the forward of one whole row. Weights are drawn much larger than a trained
model's, so that positions, biases and norms all matter and greedy answers do not collapse to one token.
"""

import pytest
import torch

import model as m
from model import Config, KVCache, Qwen

torch.set_num_threads(2)

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
    model = m.load(tmp_path)
    tokens = tokens_like((3, 200), model.config)
    expected = oracle(tokens).logits
    assert expected.std() > 0.5  # else the bound says nothing
    assert (model.head(model(tokens)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["two per kv head, tied", "seven per kv head, untied", "sharded, theta 1e6"])
@torch.no_grad()
def test_greedy_continuations_equal_transformers_batched_and_alone(transformers, tmp_path, name):
    oracle = oracle_model(transformers, tmp_path, **CHECKPOINTS[name])
    model = m.load(tmp_path)
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
    model = m.load(tmp_path)
    tokens = tokens_like((1, 4000), model.config)
    difference = (model.head(model(tokens)) - oracle(tokens).logits).abs()
    assert difference[0, -100:].max() <= 1e-4


def test_gradients_equal_transformers(transformers, tmp_path):
    for changes in (dict(tie_word_embeddings=True), dict(num_key_value_heads=6)):
        oracle = oracle_model(transformers, tmp_path, **changes)
        model = m.load(tmp_path)
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
    model = m.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tokens = tokens_like((2, 100), model.config)
    exact = m.load(tmp_path, dtype=torch.float32)
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
    norm = m.RMSNorm(4096, 1e-6).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    assert (norm(x) == exact.float().bfloat16()).float().mean() > 0.999


def test_rotary_is_computed_in_float32():
    """1,000 and 1,001 are one number in bfloat16: with rounded angles they would be one position."""
    cos, sin = m.rotary(torch.tensor([[1000, 1001]]), SMALL)
    assert cos.dtype == sin.dtype == torch.float32
    half = torch.arange(0, 8, 2).double()
    angles = torch.tensor([1000.0, 1001.0]).double()[:, None] * 10_000.0 ** (-half / 8)
    assert (cos[0, 0, :, :4] - angles.cos()).abs().max() < 1e-4
    x = torch.randn(1, 5, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    pairs = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    rounded_once = torch.cat([pairs.real, pairs.imag], -1).float().bfloat16()
    assert m.rotate(x, cos, sin).dtype == torch.bfloat16
    assert (m.rotate(x, cos, sin) == rounded_once).float().mean() > 0.95


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
    config = m.Config(**{**m.asdict(SMALL), "num_key_value_heads": kv_heads})
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


@torch.no_grad()
def test_copied_prompt_equals_recomputation():
    """A group of samples shares one prefill: to one row, and to several at once."""
    model = small_model()
    prompt, answers = tokens_like((23,)), tokens_like((4, 10), seed=8)
    cache = KVCache(SMALL, 6, 40)
    model(tokens_like((6, 40), seed=9), cache)  # what earlier episodes left behind
    cache.lengths.zero_()
    model(prompt[None], cache, rows=slice(3, 4))
    cache.copy_row(3, torch.tensor([5, 0]), 23)
    cache.copy_row(3, 1, 23)
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
