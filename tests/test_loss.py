"""loss.py against numbers worked out by hand, loops in float64, finite differences and invariances."""

import math

import pytest
import torch
from torch import nn

import loss as L
from fast import head

torch.set_num_threads(1)
POISON = [math.nan, math.inf, -math.inf]
KINDS = ["ppo", "gspo", "cispo"]


class Toy(nn.Module):
    """A causal language model of a few lines: position t sees the mean of the embeddings up to t."""

    def __init__(self, vocabulary=11, width=6, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(vocabulary, width, generator=generator))
        self.output = nn.Parameter(torch.randn(vocabulary, width, generator=generator))
        self.rows = []  # how many rows went through the head, call by call

    def forward(self, tokens):
        hidden = self.embedding[tokens].cumsum(1) / torch.arange(1, tokens.size(1) + 1)[:, None]
        self.hidden = hidden.tanh()
        return self.hidden

    def head(self, hidden):
        self.rows.append(hidden[..., 0].numel())
        return hidden @ self.output.T


class Packs(Toy):
    """Toy as a model that packs; `packing`, a fixture, lets token_logprobs take it for a Qwen."""

    def forward(self, tokens, positions, attend):
        """Hidden states of tokens laid out by Backwards, which only it can undo."""
        self.lengths = attend
        return super().forward(tokens).flip(0, 1)

    @property
    def head_weight(self):
        return self.output


class Backwards:
    """A layout that swaps rows and columns end for end: place says where each token went."""

    def __init__(self, tokens, lengths):
        self.tokens, self.positions, self.attend = tokens, None, lengths
        self.place = torch.arange(tokens.numel()).flip(0).view(tokens.shape)


@pytest.fixture(autouse=True)
def packing(monkeypatch):
    monkeypatch.setattr(L, "packs", lambda model: isinstance(model, Packs))
    monkeypatch.setattr(L, "Packing", Backwards)


class Table(nn.Module):
    """A "model" whose logits are its parameters, so that a test can choose them and read their gradient."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, tokens):
        return self.logits

    def head(self, hidden):
        return hidden


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(rows=5, columns=9, vocabulary=11, seed=1):
    """Tokens, lengths and a ragged mask with holes: a prompt first, tool output inside, padding last."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (rows, columns), generator=generator)
    lengths = torch.tensor([9, 4, 7, 2, 6])[:rows]
    mask = torch.rand(rows, columns, generator=generator) < 0.6
    mask &= torch.arange(columns) < lengths[:, None]
    mask[:, 0] = False
    return tokens, lengths, mask


def gradients(value, *leaves):
    return torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)


def slopes(function, x, eps=1e-6):
    """Finite differences of a plain Python function of a list of lists, in float64."""
    result = [[0.0] * len(row) for row in x]
    for i, row in enumerate(x):
        for t, old in enumerate(row):
            row[t] = old + eps
            above = function(x)
            row[t] = old - eps
            result[i][t] = (above - function(x)) / (2 * eps)
            row[t] = old
    return torch.tensor(result)


def clip(x, low, high):
    return min(max(x, low), high)


# ---- log-probabilities


def test_logits_to_logprobs_by_hand():
    """Logits ln(1, 2, 5) are the distribution (1, 2, 5) / 8, and those at t score the token at t + 1."""
    logits = torch.tensor([[[1.0, 2, 5], [3, 1, 1], [7, 7, 7]], [[1, 1, 2], [5, 2, 1], [1, 9, 1]]]).log()
    tokens = torch.tensor([[0, 2, 1], [2, 0, 0]])
    expected = torch.tensor([[1, 5 / 8, 1 / 5], [1, 1 / 4, 5 / 8]]).log()
    torch.testing.assert_close(L.logits_to_logprobs(logits, tokens), expected)
    torch.testing.assert_close(L.logits_to_logprobs(logits[:, :-1], tokens), expected)
    assert (L.logits_to_logprobs(logits, tokens)[:, 0] == 0).all()


def test_logits_to_logprobs_gradient_is_one_hot_minus_probability():
    logits = torch.tensor([[[1.0, 2, 5], [3, 1, 1], [7, 7, 7]]]).log().requires_grad_()
    L.logits_to_logprobs(logits, torch.tensor([[0, 2, 1]])).sum().backward()
    expected = torch.tensor([[[-1 / 8, -2 / 8, 3 / 8], [-3 / 5, 4 / 5, -1 / 5], [0, 0, 0]]])
    torch.testing.assert_close(logits.grad, expected)
    assert (logits.grad[:, -1] == 0).all()


def test_temperature_divides_the_logits():
    logits = torch.tensor([[[1.0, 4, 25], [1, 1, 1]]]).log()
    tokens = torch.tensor([[0, 2]])
    assert L.logits_to_logprobs(logits, tokens, 2.0)[0, 1].exp().item() == pytest.approx(
        5 / 8
    )  # roots: 1, 2, 5
    greedy = L.logits_to_logprobs(logits, tokens, 0.0)  # the sampler's convention: log-probs of temperature 1
    assert greedy[0, 1].exp().item() == pytest.approx(25 / 30)
    with pytest.raises(ValueError, match="temperature is -1"):
        L.logits_to_logprobs(logits, tokens, -1)


def test_logprobs_of_bfloat16_logits_are_computed_in_float32():
    logits = (4 * randn(2, 5, 50)).bfloat16()
    tokens = torch.randint(50, (2, 5))
    result = L.logits_to_logprobs(logits, tokens)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, L.logits_to_logprobs(logits.float(), tokens), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_token_logprobs_equals_the_full_log_softmax(with_mask, with_lengths, temperature):
    tokens, lengths, mask = batch()
    model = Toy()
    counts = torch.arange(9).expand(5, 9) > 0
    if with_mask:
        counts = counts & mask
    if with_lengths:
        counts = counts & (torch.arange(9) < lengths[:, None])

    full = (model.head(model(tokens)).double() / temperature).softmax(-1).log()
    expected = torch.zeros(5, 9, dtype=torch.float64)
    for i, t in counts.nonzero().tolist():
        expected[i, t] = full[i, t - 1, tokens[i, t]]
    result = L.token_logprobs(
        model,
        tokens,
        lengths=lengths if with_lengths else None,
        mask=mask if with_mask else None,
        temperature=temperature,
    )
    assert result.dtype == torch.float32 and (result[~counts] == 0).all()
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)  # float32 against float64
    upstream = randn(5, 9)
    wanted = gradients((expected * upstream).sum(), *model.parameters())
    found = gradients((result * upstream).sum(), *model.parameters())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_chunks_change_nothing(chunk):
    tokens, lengths, mask = batch()
    model = Toy()
    results = []
    for size in (None, chunk):
        both = L.token_logprobs(model, tokens, lengths=lengths, mask=mask, chunk=size, entropy=True)
        results.append((*both, *gradients((both[0] * 2 + both[1]).sum(), *model.parameters())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 256 * 19, 400 * 19, 2**21])  # chunks of 256, 256, 400 and all
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy", [False, True])
def test_vocabulary_chunks_equal_the_whole_softmax(monkeypatch, at_once, temperature, entropy):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", at_once)
    tokens, lengths, mask = batch(vocabulary=700)
    assert mask.sum() == 19
    results, upstream = [], randn(2, 5, 9)
    for model in (Toy(700), Packs(700)):
        options = {"lengths": lengths, "mask": mask, "temperature": temperature, "entropy": entropy}
        found = L.token_logprobs(model, tokens, **options)
        found = found if entropy else (found,)
        value = sum((x * weight).sum() for x, weight in zip(found, upstream, strict=False))
        results.append((*found, *gradients(value, *model.parameters())))
    assert model.rows == []  # logits of the whole vocabulary were not computed
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_a_chunk_limits_the_logits_by_vocabulary_too(monkeypatch, chunk):
    """At most as many at once as those of `chunk` rows, or of 256 entries; the results are the same."""
    tokens, lengths, mask = batch(vocabulary=3000)
    sizes, tempered = [], head.tempered
    results = []
    for model in (Toy(3000), Packs(3000)):
        monkeypatch.setattr(head, "tempered", lambda x, t: sizes.append(x.numel()) or tempered(x, t))
        both = L.token_logprobs(model, tokens, lengths=lengths, mask=mask, chunk=chunk, entropy=True)
        results.append((*both, *gradients((both[0] * 2 + both[1]).sum(), *model.parameters())))
        if model.rows:
            sizes.clear()
    assert max(sizes) <= max(256 * 19, chunk * 3000)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=2e-6)


def test_of_several_vocabulary_chunks_no_logits_are_kept_for_the_backward_pass():
    """By default LOGITS_AT_ONCE limits what is there at a time, whatever the number of rows."""
    vocabulary, most = 20_000, head.LOGITS_AT_ONCE["cpu"]
    tokens = torch.randint(vocabulary, (8, 65))

    def kept(vocabulary):
        saved, model = [], Packs(vocabulary)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            L.token_logprobs(model, tokens % vocabulary, entropy=True)
        return sum(saved) - model.output.numel()

    assert 512 * vocabulary > 4 * most  # several chunks
    assert kept(vocabulary) < 512 * 100 and kept(3000) > 512 * 3000


def test_vocabulary_chunks_in_bfloat16_round_no_more_than_the_whole():
    """Gradients of rows add up over the chunks: in float32, else every chunk would round once more."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(8000, 64, generator=generator) / 4).bfloat16().requires_grad_()
    targets = torch.randint(8000, (40,), generator=generator)
    exact = [x.detach().double().requires_grad_() for x in (rows, weight)]
    (exact[0] @ exact[1].T).log_softmax(-1)[range(40), targets].sum().backward()
    errors = []
    for size in (256, 8000):
        head.HeadScores.apply(rows, weight, targets, 1.0, False, size)[0].sum().backward()
        pairs = zip((rows, weight), exact, strict=True)
        errors.append([((x.grad - y.grad).norm() / y.grad.norm()).item() for x, y in pairs])
        rows.grad = weight.grad = None
    assert all(many <= 1.5 * one for many, one in zip(*errors, strict=True)) and max(errors[0]) < 0.01


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    tokens, _, mask = batch(vocabulary=700)
    found = []
    for model in (Toy(700), Packs(700)):
        model.output.requires_grad_(False)
        L.token_logprobs(model, tokens, mask=mask).sum().backward()
        assert model.output.grad is None
        found.append(model.embedding.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_only_what_predicts_a_counted_token_is_asked_of_the_model():
    """Row by row up to the last token that counts, that one excluded; of a row without any, one token."""
    model = Packs()
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    L.token_logprobs(model, torch.ones_like(mask), lengths=torch.tensor([5, 5, 5, 2]), mask=mask)
    assert model.lengths == [3, 4, 1, 1]


def test_only_rows_that_are_needed_go_through_the_head_and_few_at_a_time():
    tokens, lengths, mask = batch()
    model = Toy()
    L.token_logprobs(model, tokens, lengths=lengths, mask=mask, chunk=4)
    assert sum(model.rows) == mask.sum() and max(model.rows) == 4


def test_with_several_chunks_no_logits_are_kept_for_the_backward_pass():
    """Else memory grows with batch x vocabulary: the reason for chunks in the first place."""
    tokens, lengths, mask = batch()

    def kept(chunk):
        saved = []
        model = Toy(vocabulary=500)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
            result = L.token_logprobs(model, tokens, mask=mask, chunk=chunk, entropy=True)
            assert result[0].requires_grad and result[1].requires_grad
        return [shape for shape in saved if len(shape) == 3 and shape[-1] == 500]

    assert kept(1000) and not kept(4)


def test_default_chunk_shrinks_as_the_vocabulary_grows(monkeypatch):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 100)
    tokens, lengths, mask = batch()
    for vocabulary, most in ((11, 9), (50, 2), (500, 1)):
        model = Toy(vocabulary)
        L.token_logprobs(model, tokens, mask=mask)
        assert max(model.rows) == most and sum(model.rows) == mask.sum()


def test_gradient_is_exactly_zero_at_rows_that_predict_masked_tokens():
    tokens, lengths, mask = batch()
    model = Table(randn(5, 9, 11))
    L.token_logprobs(model, tokens, lengths=lengths, mask=mask).sum().backward()
    predicts = torch.zeros_like(mask)
    for i, t in mask.nonzero().tolist():
        predicts[i, t - 1] = True
    assert (model.logits.grad[~predicts] == 0).all()
    assert (model.logits.grad[predicts].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("poison", POISON)
def test_poisoned_rows_that_predict_masked_tokens_change_nothing(poison):
    tokens, lengths, mask = batch()
    predicts = mask.roll(-1, dims=1)  # column 0 of the mask is False
    found = []
    for value in (0.0, poison):
        model = Table(randn(5, 9, 11).masked_fill(~predicts[..., None], value))
        both = L.token_logprobs(model, tokens, lengths=lengths, mask=mask, entropy=True, chunk=4)
        found.append((*both, *gradients(both[0].sum() + both[1].sum(), model.logits)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("junk", [-100, -1, 10**12])
def test_tokens_beyond_lengths_may_be_any_integer(junk):
    tokens, lengths, mask = batch()
    beyond = torch.arange(9) >= lengths[:, None]
    model = Toy()
    expected = L.token_logprobs(model, tokens, lengths=lengths)
    assert torch.equal(L.token_logprobs(model, tokens.masked_fill(beyond, junk), lengths=lengths), expected)
    assert (expected[beyond] == 0).all()
    everything = torch.ones_like(mask)  # a mask that reaches into the padding does not count there either
    assert torch.equal(L.token_logprobs(model, tokens, lengths=lengths, mask=everything), expected)


def test_the_caller_keeps_mask_and_tokens_as_they_were():
    """Column 0 is taken out of the mask: of a copy, for `mask.bool()` of a bool mask is the mask itself."""
    tokens, lengths, mask = batch()
    everything, before = torch.ones_like(mask), tokens.clone()
    for some in (lengths, None):
        L.token_logprobs(Toy(), tokens, lengths=some, mask=everything)
        assert everything.all() and torch.equal(tokens, before)


def test_without_counted_tokens_every_gradient_is_there_and_zero():
    """A rank without data still takes part in the backward pass and its collectives."""
    tokens, _, mask = batch()
    model = Toy()
    logprobs, entropy = L.token_logprobs(model, tokens, mask=mask & False, entropy=True)
    assert logprobs.shape == entropy.shape == (5, 9) and not logprobs.any() and not entropy.any()
    (logprobs.sum() + entropy.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def brute_entropy(rows, temperature=1.0):
    total = 0.0
    for row in rows:
        weights = [math.exp(x / temperature) for x in row]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w)
    return total


def test_entropy_by_hand():
    logits = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 3, 0, 0], [2, 1, 1, 0], [5, 6, 7, 8]]]).log()
    tokens = torch.zeros(1, 5, dtype=torch.long)
    _, entropy = L.token_logprobs(Table(logits), tokens, entropy=True)
    expected = [
        0,
        math.log(4),
        math.log(2),
        0,
        1.5 * math.log(2),
    ]  # entry t: the row that predicted tokens[t]
    assert entropy[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropy_and_its_gradient_against_brute_force(temperature):
    logits = 2 * randn(1, 4, 7)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    model = Table(logits)
    _, entropy = L.token_logprobs(model, tokens, entropy=True, temperature=temperature)
    rows = logits[0, :-1].double().tolist()
    assert entropy.sum().item() == pytest.approx(brute_entropy(rows, temperature), rel=1e-5)
    entropy.sum().backward()
    expected = slopes(lambda x: brute_entropy(x, temperature), rows)
    torch.testing.assert_close(model.logits.grad[0, :-1], expected, rtol=1e-4, atol=1e-5)


def test_entropy_with_forbidden_words_has_a_finite_gradient():
    """A logit of -inf is a probability of 0: its term is 0, and 0 * -inf must not appear in the gradient."""
    model = Table([[[0.0, -math.inf, 1.0], [0, 0, 0]]])
    _, entropy = L.token_logprobs(model, torch.tensor([[0, 2]]), entropy=True)
    assert entropy[0, 1].item() == pytest.approx(brute_entropy([[0.0, 1.0]]))
    entropy.sum().backward()
    expected = slopes(brute_entropy, [[0.0, 1.0]])[0]
    torch.testing.assert_close(model.logits.grad[0, 0, [0, 2]], expected, rtol=1e-4, atol=1e-5)
    assert model.logits.grad[0, 0, 1] == 0


# ---- weights

CLASSIC = [[1, 2, 3, 4, 5, 6], [10], [2, 2], [4, 4, 4]]


def classic():
    losses, mask = torch.zeros(4, 7), torch.zeros(4, 7, dtype=torch.bool)
    for i, row in enumerate(CLASSIC):
        losses[i, 1 : 1 + len(row)] = torch.tensor(row)
        mask[i, 1 : 1 + len(row)] = True
    return losses, mask


def test_the_classic_wrong_number():
    """Frameworks of renown averaged means of micro-batches, and long sequences lost weight in silence."""
    losses, mask = classic()
    assert L.weighted_sum(losses, L.token_weights(mask)).item() == pytest.approx(47 / 12)  # 3.9167

    def mean_of_means(*parts):
        means = [sum(sum(CLASSIC[i]) for i in p) / sum(len(CLASSIC[i]) for i in p) for p in parts]
        return sum(means) / len(means)

    assert mean_of_means([0], [1], [2], [3]) == pytest.approx(4.875)
    assert mean_of_means([0, 1], [2, 3]) == pytest.approx(3.814, abs=1e-3)
    assert mean_of_means([0], [1, 2, 3]) == pytest.approx(47 / 12)  # right only because both have six tokens
    for split in ([1, 1, 1, 1], [2, 2], [1, 3]):
        pairs = zip(losses.split(split), L.token_weights(mask).split(split), strict=True)
        assert sum(L.weighted_sum(*pair) for pair in pairs).item() == pytest.approx(47 / 12)


def test_weights_by_hand():
    losses, mask = classic()
    assert torch.allclose(L.token_weights(mask)[mask], torch.tensor(1 / 12))
    by_sequence = L.token_weights(mask, "seq_mean")
    expected = torch.tensor([1 / 24, 1 / 4, 1 / 8, 1 / 12])
    torch.testing.assert_close(by_sequence, expected[:, None] * mask)
    assert L.weighted_sum(losses, by_sequence).item() == pytest.approx(
        4.875
    )  # here the mean of means is meant
    constant = L.token_weights(mask, "constant", max_tokens=50)
    torch.testing.assert_close(constant, mask / 200)
    for weights in (L.token_weights(mask), by_sequence, constant):
        assert weights.dtype == torch.float32 and (weights[~mask] == 0).all()


def test_sequence_mean_is_over_sequences_that_have_a_token():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    expected = torch.tensor([[0, 1 / 4, 1 / 4, 0], [0, 0, 0, 0], [0, 1 / 2, 0, 0]])
    torch.testing.assert_close(L.token_weights(mask, "seq_mean"), expected)
    constant = L.token_weights(mask, "constant", max_tokens=10)  # but a constant divides by every sequence
    torch.testing.assert_close(constant, mask / 30)


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean", "constant"])
def test_nothing_masked_in_gives_weights_of_zero(mode):
    weights = L.token_weights(torch.zeros(3, 4), mode, max_tokens=5)
    assert weights.shape == (3, 4) and (weights == 0).all()


def test_weights_refuse_what_they_do_not_know():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match="token_mean, seq_mean or constant"):
        L.token_weights(mask, "mean")
    for most in (None, 0, -1):
        with pytest.raises(ValueError, match="max_tokens"):
            L.token_weights(mask, "constant", max_tokens=most)


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean", "constant"])
@pytest.mark.parametrize("ranks", [[5], [2, 3], [4, 0, 1], [1, 1, 1, 1, 1]])
def test_world_size_changes_nothing(mode, ranks):
    _, _, mask = batch()
    mask[2] = False  # a sequence without a token, whatever rank it is on
    contributions = []

    def first_pass(count):
        contributions.append(count.clone())
        return count

    for part in mask.split(ranks):
        L.token_weights(part, mode, max_tokens=6, all_reduce=first_pass)
    assert all(count.dim() == 0 for count in contributions) and len(contributions) == len(ranks)

    def all_reduce(count):
        before = count.clone()
        total = torch.stack(contributions).sum()
        assert torch.equal(count, before)
        return total

    parts = [L.token_weights(part, mode, max_tokens=6, all_reduce=all_reduce) for part in mask.split(ranks)]
    torch.testing.assert_close(torch.cat(parts), L.token_weights(mask, mode, max_tokens=6), rtol=0, atol=0)


@pytest.mark.parametrize("poison", POISON)
def test_weight_zero_contributes_exactly_zero(poison):
    x = torch.tensor([[poison, 2.0, 3.0], [4.0, poison, poison]], requires_grad=True)
    weights = torch.tensor([[0, 0.5, 0.25], [1, 0, 0]])
    total = L.weighted_sum(x, weights)
    assert total.item() == 1 + 0.75 + 4
    assert torch.equal(gradients(total, x)[0], weights)


# ---- invariances of a whole training loss


def training_loss(model, data, weights, kind="ppo"):
    """What grpo.py sums for each micro-batch: policy term, KL term, entropy bonus."""
    tokens, lengths, mask, old, ref, advantages = data
    logprobs, entropy = L.token_logprobs(model, tokens, lengths=lengths, mask=mask, entropy=True)
    terms = L.policy_loss(logprobs, old, advantages, mask, kind=kind, clip_low=0.1, clip_high=0.1)
    return L.weighted_sum(terms + 0.1 * L.kl(logprobs, ref, mask) - 0.01 * entropy, weights)


def training_data():
    tokens, lengths, mask = batch()
    logprobs = L.token_logprobs(Toy(), tokens, lengths=lengths, mask=mask).detach()
    old, ref = logprobs + 0.2 * randn(5, 9, seed=2), logprobs + 0.3 * randn(5, 9, seed=3)
    return tokens, lengths, mask, old, ref, randn(5, seed=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["token_mean", "seq_mean", "constant"])
@pytest.mark.parametrize(
    "order, split", [([0, 1, 2, 3, 4], [1, 1, 1, 1, 1]), ([0, 1, 2, 3, 4], [2, 3]), ([3, 1, 4, 0, 2], [4, 1])]
)
def test_micro_batches_and_their_order_change_nothing(kind, mode, order, split):
    model, data = Toy(), training_data()
    weights = L.token_weights(data[2], mode, max_tokens=8)
    whole = training_loss(model, data, weights, kind)
    expected = (whole, *gradients(whole, *model.parameters()))
    total = torch.tensor(0.0)
    for rows in torch.tensor(order).split(split):
        total = total + training_loss(model, [x[rows] for x in data], weights[rows], kind)
    found = (total, *gradients(total, *model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amount", [1, 30])
def test_right_padding_changes_nothing(amount):
    model, data = Toy(), training_data()
    tokens, lengths, mask, old, ref, advantages = data
    whole = training_loss(model, data, L.token_weights(mask))
    expected = (whole, *gradients(whole, *model.parameters()))

    def pad(x, value):
        return torch.cat([x, x.new_full((5, amount), value)], dim=1)

    mask = pad(mask, False)
    padded = (pad(tokens, -100), lengths, mask, pad(old, math.nan), pad(ref, math.inf), advantages)
    total = training_loss(model, padded, L.token_weights(mask))
    found = (total, *gradients(total, *model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean", "constant"])
@pytest.mark.parametrize("left, right", [(0, 4), (4, 0), (20, 3)])
def test_padding_of_either_side_changes_no_term(left, right, mode):
    _, _, mask = batch()
    tensors = [randn(5, 9, seed=i) for i in range(3)]

    def terms(mask, new, old, advantages):
        weights = L.token_weights(mask, mode, max_tokens=8)
        x = sum(L.policy_loss(new, old, advantages, mask, kind=kind) for kind in KINDS)
        x = x + L.kl(new, old, mask) + L.value_loss(new, old, advantages, mask, clip=0.2)
        stats = torch.stack(list(L.policy_stats(new, old, advantages, mask, 0.2, 0.2).values()))
        return torch.cat([L.weighted_sum(x, weights)[None], stats])

    def pad(x, value):
        return torch.cat([x.new_full((5, left), value), x, x.new_full((5, right), value)], dim=1)

    found = terms(pad(mask, False), *[pad(x, math.nan) for x in tensors])
    torch.testing.assert_close(found, terms(mask, *tensors), rtol=1e-5, atol=1e-6)


# ---- policy


@pytest.mark.parametrize(
    "ratio, advantage, dual_clip, value, slope",
    [
        (1.0, 2.0, None, -2.0, -2.0),  # on policy: REINFORCE
        (1.2, 1.0, None, -1.2, -1.2),  # above 1 + clip_low, below 1 + clip_high: still learns
        (1.5, 1.0, None, -1.28, 0.0),  # raised enough
        (1.5, -1.0, None, 1.5, 1.5),  # raised although bad: no clip
        (0.5, -1.0, None, 0.8, 0.0),  # lowered enough
        (0.5, 1.0, None, -0.5, -0.5),  # lowered although good: no clip
        (0.75, -2.0, None, 1.6, 0.0),  # 0.75 would be inside 1 - clip_high
        (5.0, -1.0, None, 5.0, 5.0),
        (5.0, -1.0, 3.0, 3.0, 0.0),  # dual clip
        (5.0, -2.0, 3.0, 6.0, 0.0),
        (2.0, -1.0, 3.0, 2.0, 2.0),  # not far enough for it
        (5.0, 1.0, 3.0, -1.28, 0.0),  # nor for a good token
        (1.5, 0.0, 3.0, 0.0, 0.0),
    ],
)
def test_clipped_loss_by_hand(ratio, advantage, dual_clip, value, slope):
    new = torch.tensor([[0.3, math.log(ratio) - 1]], requires_grad=True)
    old, mask = torch.tensor([[0.1, -1.0]]), torch.tensor([[False, True]])
    result = L.policy_loss(new, old, torch.tensor([advantage]), mask, dual_clip=dual_clip)
    assert result.tolist() == [[0.0, pytest.approx(value)]]
    assert gradients(result.sum(), new)[0].tolist() == [[0.0, pytest.approx(slope, abs=1e-6)]]


def test_gspo_by_hand():
    """Ratios 4 and 1 make one ratio 2, clipped for A > 0; 1/4 and 1 make 1/2, kept for A > 0."""
    log_ratio = torch.tensor([[9, 4, 1, 9], [9, 4, 1, 9], [9, 0.25, 1, 9]]).log()
    old = torch.full((3, 4), -3.0)
    new = (old + log_ratio).requires_grad_()
    mask = torch.tensor([[0, 1, 1, 0]] * 3).bool()
    result = L.policy_loss(new, old, torch.tensor([1.0, -1, 1]), mask, kind="gspo", clip_low=0.25)
    expected = torch.tensor([-1.28, 2, -0.5])[:, None] * mask
    torch.testing.assert_close(result, expected)
    slope = gradients(L.weighted_sum(result, L.token_weights(mask, "seq_mean")), new)[0]
    torch.testing.assert_close(slope, torch.tensor([0, 2 / 6, -0.5 / 6])[:, None] * mask)


def test_gspo_with_an_advantage_per_token_gives_each_token_its_own():
    mask = torch.tensor([[0, 1, 1]]).bool()
    old = torch.tensor([[0.0, -1, -1]])
    new = (old + torch.tensor([[0, 0.1, -0.1]])).requires_grad_()  # s = 1
    result = L.policy_loss(new, old, torch.tensor([[9.0, 2, -3]]), mask, kind="gspo")
    torch.testing.assert_close(result, torch.tensor([[0.0, -2, 3]]))
    torch.testing.assert_close(gradients(result.sum(), new)[0], torch.tensor([[0.0, -2, 3]]))


def test_cispo_by_hand():
    """A clipped token keeps its gradient, with the clipped ratio as its weight."""
    new = torch.tensor([[0.0, -1, -2, -0.5]], requires_grad=True)
    ratios = torch.tensor([[1.0, 1.1, 5, 0.1]])
    advantages, mask = torch.tensor([[7.0, 2, 1, -1]]), torch.tensor([[0, 1, 1, 1]])
    result = L.policy_loss(new, new.detach() - ratios.log(), advantages, mask, kind="cispo")
    torch.testing.assert_close(result, torch.tensor([[0, 2.2, 2.56, -0.4]]))  # -clip(r) A logprob
    torch.testing.assert_close(gradients(result.sum(), new)[0], torch.tensor([[0, -2.2, -1.28, 0.8]]))


def brute_policy(new, old, advantages, mask, kind, mode, dual=None, low=0.2, high=0.28, frozen=None):
    """The whole loss with loops. `frozen` are the log-probs inside the stop-gradient of CISPO."""
    counts = [sum(row) for row in mask]
    total = 0.0
    for i, row in enumerate(mask):
        logs = [new[i][t] - old[i][t] for t in range(len(row)) if row[t]]
        for t in range(len(row)):
            if not row[t]:
                continue
            A = advantages[i]
            if kind == "cispo":
                r = math.exp(frozen[i][t] - old[i][t])
                value = -clip(r, 1 - low, 1 + high) * A * new[i][t]
            else:
                r = math.exp(new[i][t] - old[i][t] if kind == "ppo" else sum(logs) / len(logs))
                value = -min(r * A, clip(r, 1 - low, 1 + high) * A)
                if dual and A < 0:
                    value = min(value, -dual * A)
            if mode == "token_mean":
                total += value / sum(counts)
            elif mode == "seq_mean":
                total += value / counts[i] / sum(count > 0 for count in counts)
            else:
                total += value / (len(mask) * 8)
    return total


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean", "constant"])
@pytest.mark.parametrize(
    "kind, dual", [("ppo", None), ("ppo", 1.5), ("gspo", None), ("gspo", 1.2), ("cispo", None)]
)
def test_policy_loss_and_gradient_against_loops_and_finite_differences(kind, dual, mode):
    _, _, mask = batch()
    new, old, advantages = randn(5, 9, seed=5) - 2, randn(5, 9, seed=6) - 2, randn(5, seed=7)
    new.requires_grad_()
    terms = L.policy_loss(new, old, advantages, mask, kind=kind, dual_clip=dual)
    result = L.weighted_sum(terms, L.token_weights(mask, mode, max_tokens=8))

    x = new.detach().double().tolist()
    rest = old.double().tolist(), advantages.double().tolist(), mask.tolist(), kind, mode, dual
    frozen = [list(row) for row in x]
    assert result.item() == pytest.approx(brute_policy(x, *rest, frozen=frozen), abs=1e-5)
    expected = slopes(lambda x: brute_policy(x, *rest, frozen=frozen), x)
    found = gradients(result, new)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_first_pass_is_reinforce_with_baseline(kind):
    """Ratio exactly 1, and gradient -sum_t w A grad log pi, each token's gradient taken on its own."""
    tokens, lengths, mask, *_, advantages = training_data()
    model = Toy()
    logprobs = L.token_logprobs(model, tokens, lengths=lengths, mask=mask)
    stats = L.policy_stats(logprobs, logprobs.detach(), advantages, mask, 0.0, 0.0)
    assert stats["ratio_max"] == 1 and stats["ratio"] == mask.sum() == stats["tokens"]
    assert stats["approx_kl"] == stats["clip_low"] == stats["clip_high"] == 0

    weights = L.token_weights(mask, "seq_mean")
    terms = L.policy_loss(logprobs, logprobs.detach(), advantages, mask, kind=kind)
    assert torch.equal(gradients(terms.sum(), logprobs)[0], -advantages[:, None] * mask)
    found = gradients(L.weighted_sum(terms, weights), *model.parameters())

    expected = [torch.zeros_like(p) for p in model.parameters()]
    for i, t in mask.nonzero().tolist():
        logits = model.head(model(tokens[i : i + 1, :t]))[0, -1]
        for total, g in zip(
            expected, gradients(logits.log_softmax(-1)[tokens[i, t]], *model.parameters()), strict=True
        ):
            total -= weights[i, t] * advantages[i] * g
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_advantage_per_sequence_is_the_same_for_each_of_its_tokens(kind):
    _, _, mask = batch()
    new, old, advantages = randn(5, 9, seed=5), randn(5, 9, seed=6), randn(5, seed=7)
    one = L.policy_loss(new, old, advantages, mask, kind=kind)
    assert torch.equal(one, L.policy_loss(new, old, advantages[:, None].expand(5, 9), mask, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_new_logprobs_receive_a_gradient(kind):
    _, _, mask = batch()
    inputs = [x.requires_grad_() for x in (randn(5, 9, seed=5), randn(5, 9, seed=6), randn(5, seed=7))]
    found = gradients(L.policy_loss(*inputs, mask, kind=kind).sum(), *inputs)
    assert found[0].any() and found[1] is None and found[2] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [89.0, 1000.0])
def test_a_ratio_beyond_float32_is_clipped_without_nan(kind, gap):
    new = torch.zeros(1, 2, requires_grad=True)
    mask = torch.tensor([[False, True]])
    result = L.policy_loss(new, new.detach() - gap, torch.ones(1), mask, kind=kind)
    slope = gradients(result.sum(), new)[0]
    assert result.isfinite().all() and slope.isfinite().all()
    if kind != "cispo":
        assert result[0, 1].item() == pytest.approx(-1.28) and slope[0, 1] == 0
    assert L.policy_stats(new, new - gap, torch.ones(1), mask, 0.2, 0.2)["ratio_max"].isfinite()


def test_policy_loss_refuses_what_it_does_not_know():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2)
    with pytest.raises(ValueError, match="ppo, gspo or cispo"):
        L.policy_loss(x, x, x, mask, kind="grpo")
    with pytest.raises(ValueError, match="dual_clip"):
        L.policy_loss(x, x, x, mask, dual_clip=0.9)
    with pytest.raises(ValueError, match="dual_clip"):
        L.policy_loss(x, x, x, mask, dual_clip=3.0, kind="cispo")


def test_policy_stats_by_hand():
    ratios = torch.tensor([[9.0, 1.5, 1.25, 0.5], [9, 0.5, 1.5, 1]])
    advantages = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    stats = L.policy_stats(ratios.log(), torch.zeros(2, 4), advantages, mask, 0.2, 0.28)
    expected = {
        "tokens": 5,
        "approx_kl": sum(r - 1 - math.log(r) for r in (1.5, 1.25, 0.5, 0.5, 1.5)),
        "clip_low": 1,  # 0.5 with A < 0; 0.5 with A > 0 is not clipped
        "clip_high": 1,  # 1.5 with A > 0; 1.25 is inside
        "ratio": 5.25,
        "ratio_max": 1.5,  # 9 is masked
    }
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(expected)
    assert all(x.dtype == torch.float32 and x.dim() == 0 and not x.requires_grad for x in stats.values())


def test_policy_stats_add_up_over_micro_batches():
    _, _, mask = batch()
    data = [randn(5, 9, seed=5), randn(5, 9, seed=6), randn(5, seed=7), mask]
    whole = L.policy_stats(*data, 0.2, 0.28)
    parts = [L.policy_stats(*[x[rows] for x in data], 0.2, 0.28) for rows in torch.arange(5).split([1, 3, 1])]
    for name, value in whole.items():
        column = torch.stack([part[name] for part in parts])
        torch.testing.assert_close(column.max() if name == "ratio_max" else column.sum(), value)
    for rows in (mask & False, mask[:0]):  # a rank without tokens, or without rows
        n = len(rows)
        empty = L.policy_stats(data[0][:n], data[1][:n], data[2][:n], rows, 0.2, 0.28)
        assert not any(empty.values())


def test_importance_weights_by_hand():
    old = torch.tensor([[0.0, -1, -1, -1]], requires_grad=True)
    sampler = old.detach() - torch.tensor([[1.0, 0.5, 1.5, 100]]).log()
    mask = torch.tensor([[0, 1, 1, 1]])
    result = L.importance_weights(old, sampler, mask)
    torch.testing.assert_close(result, torch.tensor([[0, 0.5, 1.5, 2.0]]))
    assert not result.requires_grad
    assert L.importance_weights(old, sampler, mask, cap=50.0)[0, 3].item() == pytest.approx(50)


# ---- KL


def test_kl_by_hand():
    d = torch.tensor([[9.0, 0, math.log(2), -math.log(2)]])
    mask = torch.tensor([[0, 1, 1, 1]])
    new = (d - 3).requires_grad_()
    log2 = math.log(2)
    for kind, values, slope in [
        ("k1", [0, 0, log2, -log2], [0, 1, 1, 1]),
        ("k2", [0, 0, log2**2 / 2, log2**2 / 2], [0, 0, log2, -log2]),
        ("k3", [0, 0, log2 - 0.5, 1 - log2], [0, 0, 0.5, -1]),  # slope 1 - exp(-d)
    ]:
        result = L.kl(new, d.new_full((1, 4), -3), mask, kind)
        assert result[0].tolist() == pytest.approx(values, abs=1e-6)
        assert gradients(result.sum(), new)[0][0].tolist() == pytest.approx(slope, abs=1e-6)
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        L.kl(d, d, mask, "k4")


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    """exp(-d) - 1 + d in float32 is noise below d = 1e-3: -6e-8 instead of 5e-9 at d = 1e-4."""
    d = torch.cat([torch.logspace(-10, 1, 500), -torch.logspace(-10, 1, 500), randn(1000)])[None]
    result = L.kl(d, torch.zeros_like(d), torch.ones_like(d))
    assert (result >= 0).all()
    for x in (1e-2, 1e-3, 1e-4):
        found = L.kl(torch.tensor([[x]]), torch.zeros(1, 1), torch.ones(1, 1)).item()
        assert found == pytest.approx(x * x / 2 - x**3 / 6, rel=1e-3)


def test_k3_of_a_token_that_has_become_impossible_is_finite():
    """exp overflows at 88: one token's infinite gradient would cost the whole step."""
    logprobs = torch.tensor([[0.0, -200.0, -1.0]], requires_grad=True)
    result = L.kl(logprobs, torch.zeros(1, 3), torch.ones(1, 3))
    (slope,) = gradients(result.sum(), logprobs)
    assert result.isfinite().all() and slope.isfinite().all()


def test_kl_over_an_enumerated_distribution():
    """Sum over all words instead of sampling: k1 and k3 are KL(pi || ref); as losses, see the docstring."""
    logits, ref = randn(8, seed=8).requires_grad_(), randn(8, seed=9).log_softmax(-1)
    logprobs, mask = logits.log_softmax(-1), torch.ones(1, 8)
    forward = (logprobs.exp() * (logprobs - ref)).sum()
    reverse = (ref.exp() * (ref - logprobs)).sum()

    def expectation(kind):
        return (logprobs.detach().exp() * L.kl(logprobs[None], ref[None], mask, kind)[0]).sum()

    for kind in ("k1", "k3"):
        assert expectation(kind).item() == pytest.approx(forward.item(), rel=1e-5)
    slope = {kind: gradients(expectation(kind), logits)[0] for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(slope["k1"], torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(slope["k2"], gradients(forward, logits)[0])
    torch.testing.assert_close(slope["k3"], gradients(reverse, logits)[0])


def test_the_reference_receives_no_gradient():
    new, ref = randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    for kind in ("k1", "k2", "k3"):
        assert gradients(L.kl(new, ref, torch.ones(2, 3), kind).sum(), ref) == (None,)


# ---- values


@pytest.mark.parametrize(
    "value, old, target, clip, loss, slope",
    [
        (1.0, 0.0, 3.0, None, 2.0, -2.0),
        (1.0, 0.9, 3.0, 0.2, 2.0, -2.0),  # inside the clip: the same
        (1.0, 0.0, 3.0, 0.2, 0.5 * 2.8**2, 0.0),  # moved far enough towards the return
        (1.0, 2.0, 3.0, 0.2, 2.0, -2.0),  # moved away from it: unclipped error is larger
        (5.0, 2.0, 3.0, 0.2, 2.0, 2.0),  # overshot: unclipped error is larger
        (2.0, 2.0, 2.0, 0.2, 0.0, 0.0),
    ],
)
def test_value_loss_by_hand(value, old, target, clip, loss, slope):
    values = torch.tensor([[7.0, value]], requires_grad=True)
    olds = torch.tensor([[1.0, old]], requires_grad=True)
    returns = torch.tensor([[2.0, target]], requires_grad=True)
    result = L.value_loss(values, olds, returns, torch.tensor([[0, 1]]), clip=clip)
    assert result.tolist() == [[0, pytest.approx(loss)]]
    found = gradients(result.sum(), values, olds, returns)
    assert found[0].tolist() == [[0, pytest.approx(slope, abs=1e-6)]] and found[1:] == (None, None)
    if clip is None:
        assert torch.equal(L.value_loss(values, None, returns, torch.tensor([[0, 1]])), result)


def test_value_loss_gradient_against_finite_differences():
    _, _, mask = batch()
    values, old, returns = (randn(5, 9, seed=i) for i in (10, 11, 12))
    values.requires_grad_()
    m, o, r = mask.tolist(), old.double().tolist(), returns.double().tolist()

    def brute(v):
        cells = [(v[i][t], o[i][t], r[i][t]) for i in range(5) for t in range(9) if m[i][t]]
        return sum(max((v - r) ** 2, (clip(v, o - 0.5, o + 0.5) - r) ** 2) / 2 for v, o, r in cells)

    result = L.value_loss(values, old, returns, mask, clip=0.5).sum()
    x = values.detach().double().tolist()
    assert result.item() == pytest.approx(brute(x), rel=1e-5)
    torch.testing.assert_close(gradients(result, values)[0], slopes(brute, x), rtol=1e-4, atol=1e-5)


# ---- what holds for every per-token term

TERMS = {
    "ppo": lambda a, b, c, m: L.policy_loss(a, b, c, m),
    "dual": lambda a, b, c, m: L.policy_loss(a, b, c, m, dual_clip=1.5),
    "gspo": lambda a, b, c, m: L.policy_loss(a, b, c, m, kind="gspo"),
    "cispo": lambda a, b, c, m: L.policy_loss(a, b, c, m, kind="cispo"),
    "k1": lambda a, b, c, m: L.kl(a, b, m, "k1"),
    "k2": lambda a, b, c, m: L.kl(a, b, m, "k2"),
    "k3": lambda a, b, c, m: L.kl(a, b, m, "k3"),
    "value": lambda a, b, c, m: L.value_loss(a, b, c, m),
    "clipped value": lambda a, b, c, m: L.value_loss(a, b, c, m, clip=0.2),
    "importance": lambda a, b, c, m: L.importance_weights(a, b, m),
    "stats": lambda a, b, c, m: torch.stack(list(L.policy_stats(a, b, c, m, 0.2, 0.2).values())),
}


@pytest.mark.parametrize("poison", [*POISON, 1e30, -1e30])
@pytest.mark.parametrize("which", [0, 1, 2, "all"])
@pytest.mark.parametrize("name", TERMS)
def test_poison_at_masked_positions_changes_neither_value_nor_gradient(name, which, poison):
    _, _, mask = batch()
    found = []
    for bad in (False, True):
        inputs = [randn(5, 9, seed=20 + i) for i in range(3)]
        if bad:
            inputs = [
                x.masked_fill(~mask, poison) if which in (i, "all") else x for i, x in enumerate(inputs)
            ]
        leaf = inputs[0].requires_grad_()
        result = TERMS[name](*inputs, mask)
        slope = gradients(result.sum(), leaf)[0] if result.requires_grad else torch.zeros(5, 9)
        if result.shape == mask.shape:
            assert (result[~mask] == 0).all()
        assert (slope[~mask] == 0).all()
        found.append((result, slope))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", TERMS)
def test_low_precision_inputs_are_computed_in_float32_and_any_mask_type_serves(name):
    _, _, mask = batch()
    inputs = [randn(5, 9, seed=20 + i).bfloat16() for i in range(3)]
    result = TERMS[name](*inputs, mask)
    assert result.dtype == torch.float32
    for kind in (torch.int64, torch.int8, torch.float32):
        assert torch.equal(TERMS[name](*[x.float() for x in inputs], mask.to(kind)), result)
        for mode in ("token_mean", "seq_mean"):
            assert torch.equal(L.token_weights(mask.to(kind), mode), L.token_weights(mask, mode))
