"""The published model in the folder ABACUS_REAL: template, logits, sampling, saving, steps of training."""

import dataclasses
import os
import random

import pytest
import torch

import grpo
import model as models
import sft
from episode import Episode, collate
from loss import token_logprobs
from plumbing.masters import masters
from plumbing.ranks import World
from rollout import REWARDS, Environment, Limits, Request, rollout
from sample import Sampler, generate
from sandbox import Sandbox
from tasks import Problem, get_protocol
from tokenizer import Source, Tokenizer
from training.loading import load_model
from training.steps import adamw

FOLDER = os.environ.get("ABACUS_REAL", "")
if not FOLDER:
    pytest.skip("ABACUS_REAL names no folder of a published model", allow_module_level=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def reader():
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def texts() -> list[str]:
    """Texts without special tokens: borders of the template, code, and any characters."""
    rng = random.Random(0)
    fixed = ["", "hello", "\n\n a \n", " {0} {} \\boxed{}", "```python\nprint(1)\n```\n", "日本語 é 1234"]
    return fixed + ["".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(40)) for _ in range(30)]


def test_first_prompts_and_later_ones_equal_the_rendered_template(tokenizer, reader):
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    for system in (None, "", "Be brief.", "\nBe\n", *texts()[-3:]):
        for user in texts():
            messages = [] if system is None else [{"role": "system", "content": system}]
            messages.append({"role": "user", "content": user})
            ids = tokenizer.chat(system, user)
            assert reader.apply_chat_template(messages, **options) == ids
            messages += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": f"{user}!"}]
            ids += [*tokenizer.encode("hi"), tokenizer.stop_ids[0], *tokenizer.follow_up(f"{user}!")]
            assert reader.apply_chat_template(messages, **options) == ids


def test_a_text_has_none_of_the_special_tokens(tokenizer, reader):
    marks = "".join(reader.get_added_vocab())
    known = set(reader.get_added_vocab().values())
    plain, forged = tokenizer.chat("", "hello"), tokenizer.chat(marks, f"hello{marks}")
    assert [i for i in plain if i in known] == [i for i in forged if i in known]
    assert not known & set(tokenizer.encode(marks))


# -- the model -------------------------------------------------------------------------------------

QUESTIONS = ["What is 6 * 7?", "Name three prime numbers above 90.", "Write a limerick about a lighthouse."]


@pytest.fixture(scope="module")
def model() -> models.Qwen:
    return models.load(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def oracle():
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@torch.no_grad()
def test_logits_equal_those_of_transformers(model, oracle, tokenizer):
    tokens = torch.tensor([tokenizer.chat(None, " ".join(QUESTIONS * 4))])
    ours, theirs = model.head(model(tokens)), oracle(tokens).logits
    assert (ours - theirs).abs().max() < 2e-4 * theirs.abs().max()


def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_batch(model, oracle, tokenizer):
    prompts = [tokenizer.chat(None, question) for question in QUESTIONS]
    together = generate(model, prompts, max_new_tokens=16, temperature=0.0, stop_ids=tokenizer.stop_ids)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = generate(model, [prompt], max_new_tokens=16, temperature=0.0, stop_ids=tokenizer.stop_ids)
        ids = torch.tensor([prompt])
        theirs = oracle.generate(ids, max_new_tokens=16, do_sample=False, repetition_penalty=1.0)
        assert found.tokens == alone.tokens == theirs[0, len(prompt) :].tolist()


def test_after_a_call_the_samplers_log_probs_are_the_trainers(model, tokenizer):
    protocol = get_protocol("code")
    question = "How many primes are below 1000? You must run Python."
    request = Request(Problem("none", 0, question, None, {}), 0, key=(0, 0, 0, 0))
    sampler = Sampler(model, slots=1, max_len=1024, temperature=0.0)
    with Sandbox(require="none", quiet=True) as sandbox:
        environment = Environment(tokenizer, protocol, sandbox, Limits(max_tokens=400), REWARDS["outcome"])
        (episode,) = rollout(sampler, environment, [request])
    assert episode.calls, "the model wrote no program"
    batch = collate([episode])
    mask = batch.source == Source.POLICY
    with torch.no_grad():
        logprobs = token_logprobs(model, batch.tokens, mask=mask)
    assert (logprobs - batch.sampler_logprobs)[mask].abs().max() < 1e-3


def test_a_saved_model_is_the_same_in_transformers(model, tokenizer, oracle, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    models.save(model, tmp_path / "saved", tokenizer)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    for (name, ours), theirs in zip(again.named_parameters(), oracle.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


# -- training --------------------------------------------------------------------------------------


def written(tokenizer: Tokenizer, answer: str, reward: float) -> Episode:
    """An episode with a program, its result, and this answer."""
    protocol = get_protocol("r1ci")
    episode = Episode(Problem("none", 0, QUESTIONS[0], None, {}), group=0)
    episode.append(tokenizer.chat(*protocol.opening(QUESTIONS[0])), Source.PROMPT)
    episode.append(tokenizer.encode(protocol.block("print(6 * 7)")), Source.POLICY)
    episode.append(tokenizer.encode(protocol.wrap("42")), Source.TOOL)
    episode.append([*tokenizer.encode(f"<<<{answer}>>>"), tokenizer.stop_ids[0]], Source.POLICY)
    episode.reward = reward
    return episode


@pytest.fixture
def learner():
    """The model in bfloat16 with float32 masters, and its optimiser."""
    world = World("cpu")
    cfg = sft.Config(model=FOLDER, dtype="bfloat16")
    model = world.shard(load_model(FOLDER, world, cfg.dtype, train=True)[0], cfg)
    return world, model, adamw(model, lr=1e-5)


def test_a_step_of_sft_lowers_its_loss(learner, tokenizer):
    world, model, optimizer = learner
    episodes = [written(tokenizer, "42", 1.0)]
    losses = [sft.train_step(model, optimizer, episodes, sft.Config(), world)["loss"] for _ in range(2)]
    assert losses[1] < losses[0] - 0.1
    assert next(masters(model).parameters()).dtype == torch.float32


def test_a_step_of_grpo_raises_what_was_right_and_lowers_what_was_wrong(learner, tokenizer):
    world, model, optimizer = learner
    episodes = [written(tokenizer, "42", 1.0), written(tokenizer, "13", 0.0)]
    batch, cfg = collate(episodes), grpo.Config()
    mask = grpo.loss_mask(batch, episodes, cfg)
    data = grpo.make_experience(model, None, batch, mask, dataclasses.replace(cfg, updates=2), world)
    optimizer.param_groups[0]["lr"] = 1e-6  # both answers share most of their tokens
    grpo.update(model, optimizer, data, batch.lengths, cfg, world)
    with torch.no_grad():
        logprobs, entropy = token_logprobs(model, batch.tokens, mask=mask, entropy=True)
    gains = ((logprobs - data.old_logprobs) * mask)[:, -5:].sum(1)
    assert gains[0] > gains[1]
    loss = grpo.objective(logprobs, entropy, data.old_logprobs, data, cfg)[mask].mean()
    before = grpo.objective(data.old_logprobs, entropy, data.old_logprobs, data, cfg)[mask].mean()
    assert loss < before
