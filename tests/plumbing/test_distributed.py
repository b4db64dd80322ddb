"""Real ranks over gloo: a step of each script on one and on three, float32 masters, ranks that are lost."""

import functools
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from fakes import SMALL
from ranks import on_processes
from torch import Tensor, nn

import grpo
import model as models
import ppo
import sft
from episode import Episode, collate
from fast.parts import slot_bytes
from loss import token_logprobs
from model import TINY, Qwen
from plumbing import ranks
from plumbing.config import UsageError
from plumbing.masters import masters
from plumbing.ranks import World
from sample import Sampler, uniforms
from tasks import Problem
from tokenizer import Source
from training.batches import micro_batches
from training.slots import sampling
from training.steps import adamw

torch.set_num_threads(1)
LR = 1e-3
COMMON = {"micro_tokens": 60, "grad_clip": 1.0}
PLACES = 6  # sequences sampled in all
RANKS = 3  # shards of unequal size; of two episodes, one rank (SFT) or two (GRPO, PPO: one group) have none


def rows(count: int) -> list[Episode]:
    """Random episodes in groups of two, with a tool segment in the middle, of very different lengths."""
    generator = torch.Generator().manual_seed(count)
    found = []
    for i in range(count):
        e = Episode(Problem("toy", i, "?", 0), group=i // 2, reward=float(i % 3 == 0), finish="stop")
        for source, size in ((0, 4), (1, 3 + 4 * i), (2, i), (1, 2)):
            tokens = torch.randint(0, 50, (size,), generator=generator).tolist()
            e.append(tokens, Source(source), [-3.0] * size if source == 1 else None)
        found.append(e)
    return found


class Recording(World):
    """Keeps the whole gradients that a step is about to use; `broken`: this rank's are NaN."""

    def __init__(self, **options):
        super().__init__("cpu", **options)
        self.gradients: list[dict[str, Tensor]] = []

    def clip_gradients(self, model: nn.Module, limit: float) -> Tensor:
        self.gradients.append({name: whole(p.grad) for name, p in masters(model).named_parameters()})
        return super().clip_gradients(model, limit)


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def gathered(model: nn.Module) -> bool:
    """Whether some parameters are whole: shards are DTensors."""
    return not all(hasattr(p, "full_tensor") for p in model.parameters())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p) for name, p in masters(model).named_parameters()}


def adam(model: nn.Module, lr: float = LR) -> torch.optim.Optimizer:
    return adamw(model, lr)


# -- what every rank does ----------------------------------------------------------------------------


def step_sft(world: World, count: int, cfg: sft.Config) -> dict:
    model = world.shard(Qwen(SMALL).init_weights(3), cfg)
    metrics = sft.train_step(model, adam(model), world.share(rows(count)), cfg, world)
    metrics |= sft.measure(model, world.share(rows(count)), cfg, world)
    assert gathered(model) == (world.size == 1)
    return {"metrics": metrics, "weights": weights(model)}


def step_grpo(world: World, count: int, cfg: grpo.Config) -> dict:
    reference = world.shard(Qwen(SMALL).init_weights(4).requires_grad_(False), cfg)
    model = world.shard(Qwen(SMALL).init_weights(3), cfg)
    assert all(hasattr(block, "unshard") == (world.size > 1) for block in model.model.layers)
    mine = [e for e in rows(count) if e.group % world.size == world.rank]
    batch = collate(mine)
    data = grpo.make_experience(model, reference, batch, grpo.loss_mask(batch, mine, cfg), cfg, world)
    assert gathered(reference) == (world.size == 1)
    metrics = grpo.update(model, adam(model), data, batch.lengths, cfg, world)
    assert gathered(model) == (world.size == 1)
    assert world.size == 1 or model.exchanged_once == (ranks.WHOLE_SHARE > 0)
    return {"metrics": metrics, "weights": weights(model)}


def step_ppo(world: World, count: int, cfg: ppo.Config) -> dict:
    actor = Qwen(SMALL).init_weights(3)
    critic = ppo.Critic(actor)
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    critic = world.shard(critic, cfg, float32=[critic.head])
    agent = ppo.Agent(world.shard(actor, cfg), critic, cfg)
    mine = [e for e in rows(count) if e.group % world.size == world.rank]
    batch = collate(mine)
    mask = ppo.loss_mask(batch, mine, cfg)
    data, _ = ppo.make_experience(agent, None, batch, mask, cfg, world)
    assert gathered(actor) == gathered(critic) == (world.size == 1)
    metrics = ppo.update(agent, batch, data, cfg, world, step=0)
    found = weights(agent.actor) | {f"critic.{k}": v for k, v in weights(agent.critic).items()}
    return {"metrics": metrics, "weights": found}


def sample(world: World) -> dict[int, tuple[list[int], list[float]]]:
    """This rank's sequences: tokens and their log-probs. The trainer's log-probs are the same, before and
    after; the ranks need different numbers of steps, and have fewer slots than sequences."""
    cfg = grpo.Config(prompts=PLACES, group=1, max_prompt=4, max_tokens=60, slots=2)
    model = world.shard(Qwen(SMALL).init_weights(3), cfg)
    found, running = {}, {}
    with sampling(model, cfg, world, PLACES, length=64) as sampler:
        assert gathered(model)
        waiting = world.share(range(PLACES))
        while waiting or running:
            while waiting and sampler.free:
                place = waiting.pop()
                running[sampler.add([1, 2, 3 + place], key=(0, place))] = place
                found[place] = ([1, 2, 3 + place], [0.0] * 3)
            for event in sampler.step():
                tokens, logprobs = found[running[event.slot]]
                tokens.append(event.token)
                logprobs.append(event.logprob)
                if len(tokens) == 10 + 9 * running[event.slot]:
                    sampler.release(event.slot)
                    del running[event.slot]
    assert gathered(model) == (world.size == 1)
    lengths = torch.tensor([len(tokens) for tokens, _ in found.values()])
    episodes = list(found.values())
    with torch.no_grad():
        for some, width in micro_batches(lengths, 60, world):
            tokens = torch.zeros(len(some), width, dtype=torch.long)
            for i, row in enumerate(some.tolist()):
                tokens[i, : lengths[row]] = torch.tensor(episodes[row][0])
            logprobs = token_logprobs(model, tokens)
            for i, row in enumerate(some.tolist()):
                got = logprobs[i, 3 : lengths[row]]
                torch.testing.assert_close(got, torch.tensor(episodes[row][1][3:]), atol=1e-4, rtol=0)
    return found


def broken_step(world: World) -> dict:
    """A loss of NaN on the last rank alone."""
    cfg = sft.Config(**COMMON)
    model = world.shard(Qwen(SMALL).init_weights(3), cfg)
    before, optimizer = weights(model), adam(model)
    kept = sft.weighted_sum
    if world.rank == world.size - 1:
        sft.weighted_sum = lambda x, w: kept(x, w) * math.nan
    metrics = sft.train_step(model, optimizer, world.share(rows(7)), cfg, world)
    sft.weighted_sum = kept
    same = all(torch.equal(before[name], p) for name, p in weights(model).items())
    again = sft.train_step(model, optimizer, world.share(rows(7)), cfg, world)
    return {"skipped": (metrics["skipped"], again["skipped"]), "same": same}


def small_updates(world: World, lr: float = 1e-6) -> dict[str, Tensor]:
    """How far three steps in bfloat16 move the masters."""
    cfg = sft.Config(dtype="bfloat16", **COMMON)
    model = world.shard(Qwen(SMALL).init_weights(3), cfg)
    before, optimizer = weights(model), adam(model, lr)
    assert all(x.dtype == torch.float32 for x in before.values())
    with world.whole(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for _ in range(3):
        sft.train_step(model, optimizer, world.share(rows(7)), cfg, world)
    return {name: (before[name], p - before[name]) for name, p in weights(model).items()}


STEPS = {
    "sft": (step_sft, sft.Config(**COMMON)),
    "grpo": (step_grpo, grpo.Config(kl_coef=0.1, **COMMON)),
    "grpo, exchanged in every pass": (step_grpo, grpo.Config(kl_coef=0.1, **COMMON)),
    "grpo, checkpointing": (step_grpo, grpo.Config(kl_coef=0.1, checkpointing=True, **COMMON)),
    "ppo": (step_ppo, ppo.Config(prompts=4, group=2, epochs=1, minibatches=1, critic_warmup=0, **COMMON)),
}


def everything() -> dict:
    """All of the above on this rank; of what is the same on all ranks, only the first one's."""
    found = {}
    with Recording() as world:
        for count in (7, 2):
            for name, (step, cfg) in STEPS.items():
                world.gradients.clear()
                ranks.WHOLE_SHARE = 0.0 if "every pass" in name else 0.05
                found[name, count] = step(world, count, cfg) | {"gradients": list(world.gradients)}
        found = found if world.main else {}
        found["sampled"] = sample(world)
        found["broken"] = broken_step(world)
        found["moved"] = small_updates(world)
    return found


@functools.cache
def results(size: int) -> list[dict]:
    """One rank: in this process, as without torchrun."""
    return [everything()] if size == 1 else on_processes(size, everything)


# -- what must be true of it -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, 2])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_several_ranks_is_that_of_one(name: str, count: int) -> None:
    want, got = results(1)[0][name, count], results(RANKS)[0][name, count]
    for ours, other in zip(want["gradients"], got["gradients"], strict=True):
        norm = sum(x.double().square().sum() for x in ours.values()).sqrt()
        gap = sum((ours[k] - other[k]).double().square().sum() for k in ours).sqrt()
        assert norm > 0 and gap <= 1e-6 * norm
    for k, x in want["weights"].items():
        assert (x - got["weights"][k]).abs().max() <= 0.01 * LR, k
    assert got["metrics"] == pytest.approx(want["metrics"], rel=1e-4, abs=1e-6)


def test_several_ranks_sample_the_tokens_of_one() -> None:
    """A token may differ only where its uniform lies within 1e-5 of an edge of the distribution."""
    want = results(1)[0]["sampled"]
    got = {k: v for rank in results(RANKS) for k, v in rank["sampled"].items()}
    assert got.keys() == want.keys()
    for place, (tokens, _) in want.items():
        other = got[place][0]
        if tokens != other:
            t = next(i for i, (a, b) in enumerate(zip(tokens, other, strict=True)) if a != b)
            model = Qwen(SMALL).init_weights(3)
            logits = model.head(model(torch.tensor([tokens[:t]])))[0, -1]
            edges = logits.double().softmax(-1).cumsum(-1)
            assert (edges - uniforms((0, place), t + 1)[t]).abs().min() < 1e-5


@pytest.mark.parametrize("size", [1, RANKS])
def test_a_gradient_that_is_broken_on_one_rank_is_skipped_on_all(size: int) -> None:
    for rank in results(size):
        assert rank["broken"] == {"skipped": (1, 0), "same": True}


@pytest.mark.parametrize("size", [1, RANKS])
def test_masters_keep_updates_that_bfloat16_would_round_away(size: int) -> None:
    """Adam moves each weight by about the learning rate a step, here far below half the spacing of bfloat16
    values (1/512 of a weight at least); that of three steps is there, and on every rank the same."""
    for name, (before, moved) in results(size)[0]["moved"].items():
        large = before.abs() > 0.01
        assert (moved[large].abs() < before[large].abs() / 512).all(), "nothing of it would be left"
        there = moved[large & (moved != 0)].abs()
        assert there.numel() >= 0.5 * large.sum(), name
        assert not there.numel() or 1e-6 < there.median() < 3.2e-6, name
    gaps = [
        (moved - results(1)[0]["moved"][name][1]).abs().flatten()
        for name, (_, moved) in results(size)[0]["moved"].items()
    ]
    assert (torch.cat(gaps) > 1e-6).float().mean() < 0.01, "but for signs of gradients near 0"


def runs(folder: Path) -> None:
    """PPO in bfloat16: two steps at once, and one and one; actor, critic and reference are sharded."""
    small = {"prompts": 3, "group": 1, "max_tokens": 12, "minibatches": 1, "critic_warmup": 0, "lr": LR}
    same = {"dtype": "bfloat16", "sandbox": "none", "kl_coef": 0.1, "entropy_coef": 0.1, "preload": ""}
    with World("cpu") as world:
        for name, steps, resume in (("straight", 2, False), ("broken", 1, False), ("broken", 2, True)):
            cfg = ppo.Config(out=str(folder / name), steps=steps, resume=resume, **small, **same)
            ppo.train(cfg, world)


def test_two_ranks_resume_to_the_same_bits_and_export_what_was_computed_with(tmp_path: Path) -> None:
    on_processes(2, functools.partial(runs, tmp_path))
    straight, broken = (models.load(tmp_path / name / "final") for name in ("straight", "broken"))
    begun = Qwen(TINY).init_weights(0).bfloat16()
    moved = 0
    for p, q, start in zip(straight.parameters(), broken.parameters(), begun.parameters(), strict=True):
        assert torch.equal(p, q) and p.dtype == torch.bfloat16
        moved += int((p != start).sum())
    assert moved > 100_000
    first, second = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "broken"))
    keys = ("loss", "value_loss", "kl", "grad_norm", "critic_grad_norm", "reward", "skipped")
    for a, b in zip(first.splitlines(), second.splitlines(), strict=True):
        assert {k: json.loads(a)[k] for k in keys} == {k: json.loads(b)[k] for k in keys}


# -- ranks that are not there ------------------------------------------------------------------------


def absent(which: str) -> str:
    """Rank 1 does not come at all, or joins and then stays away; what rank 0 says."""
    late = os.environ["RANK"] == "1"
    if late and which == "start":
        return ""
    try:
        with World("cpu", timeout=2.0) as world:
            if late:
                time.sleep(2.5)
                os._exit(0)
            world.sum(torch.ones(()))
    except UsageError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("which", ["start", "exchange"])
def test_a_rank_that_never_arrives_is_waited_for_and_then_named(which: str) -> None:
    said = on_processes(2, functools.partial(absent, which), lost=[1])[0]
    assert "rank 0 of 2" in said and "did not arrive within 2 s" in said and "--rank-timeout" in said


# -- memory ------------------------------------------------------------------------------------------


def test_slots_are_those_that_fit_into_memory(monkeypatch, capsys) -> None:
    """Counted by what the cache really holds; without room for one, a line says what is needed."""
    cfg, world = grpo.Config(prompts=2, group=4, max_prompt=10, max_tokens=20), World("cpu")
    model = world.shard(Qwen(SMALL).init_weights(0), cfg)
    one = Sampler(model, 1, 30).cache
    each = slot_bytes(model, 30)
    assert one.k.nbytes + one.v.nbytes < each < 2 * (one.k.nbytes + one.v.nbytes)
    for free, slots in ((1e9, 8), (5 * each, 4), (2 * each, 1)):
        monkeypatch.setattr(world, "free_memory", lambda free=free: int(free))
        with sampling(model, cfg, world, 8, length=30) as sampler:
            assert sampler.slots == slots
        assert sampler.cache is None, "freed for the update"
    assert capsys.readouterr().err.count("4 of 8 --slots fit into memory") == 1
    monkeypatch.setattr(world, "free_memory", lambda: each // 2)
    with (
        pytest.raises(UsageError, match="not one episode of .* = 30 tokens fits"),
        sampling(model, cfg, world, 8, length=30),
    ):
        pass


def test_offload_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="--offload on a CPU"):
        World("cpu").shard(Qwen(SMALL), sft.Config(offload=True))


def test_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    """What the backward pass keeps, counted as the tensors that autograd saves."""
    tokens = torch.randint(0, 50, (3, 40))
    kept, gradients = {}, {}
    for on in (False, True):
        model = World("cpu").shard(Qwen(SMALL).init_weights(0), sft.Config(checkpointing=on))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, s=saved: s.append(x.nbytes) or x, lambda x: x
        ):
            loss = -token_logprobs(model, tokens).sum()
        loss.backward()
        kept[on], gradients[on] = sum(saved), [p.grad for p in model.parameters()]
    assert kept[True] < 0.5 * kept[False]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))


def test_more_ranks_than_gpus_are_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="above the 2 GPUs here"):
        World()
