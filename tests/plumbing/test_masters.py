"""One rank in bfloat16: against FSDP2 on one rank, and against float32 masters kept by hand."""

import copy
import functools

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from fakes import SMALL
from ranks import on_processes
from torch import Tensor, nn

import ppo
import sft
from loss import token_logprobs
from model import Qwen
from plumbing.masters import masters, with_masters
from plumbing.ranks import World
from plumbing.shards import read_shards, snapshot, write_shards
from training.steps import adamw

LR = 1e-3
CFG = sft.Config(dtype="bfloat16")
# micro-batches of two steps
PARTS = torch.randint(0, 50, (2, 3, 2, 16), generator=torch.Generator().manual_seed(0))


def learner(checkpointing: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    cfg = sft.Config(dtype="bfloat16", checkpointing=checkpointing)
    model = World("cpu").shard(Qwen(SMALL).init_weights(3), cfg)
    return model, adamw(model, LR)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Tensor, limit: float
) -> dict[str, Tensor]:
    """One optimiser step; the gradients after clipping."""
    for tokens in parts:
        (-token_logprobs(model, tokens).mean()).backward()
    World("cpu").clip_gradients(model, limit)
    gradients = {name: whole(p.grad) for name, p in masters(model).named_parameters()}
    optimizer.step()
    optimizer.zero_grad()
    return gradients


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p) for name, p in masters(model).named_parameters()}


def sharded(limit: float) -> list[dict[str, Tensor]]:
    """Gradients and weights of two steps of a model that FSDP2 holds on one rank."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = Qwen(SMALL).init_weights(3)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in (*model.model.layers, model):
        fully_shard(unit, mp_policy=policy)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    model.set_reshard_after_forward(False, recurse=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    found = [step(model, optimizer, parts, limit) for parts in PARTS]
    return [*found, numbers(model)]


@pytest.mark.parametrize("limit", [1e9, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_steps_are_those_of_fsdp2(limit: float, checkpointing: bool) -> None:
    """To the bit; clipped, to 1e-6: the norm is summed in another order."""
    want = oracle(limit)
    model, optimizer = learner(checkpointing)
    got = [*(step(model, optimizer, parts, limit) for parts in PARTS), numbers(model)]
    close = {"rtol": 0, "atol": 0} if limit > 1 else {"rtol": 1e-6, "atol": 1e-8}
    for ours, theirs in zip(got, want, strict=True):
        for name, x in theirs.items():
            assert ours[name].dtype == x.dtype == torch.float32
            torch.testing.assert_close(ours[name], x, **close, msg=name)


@functools.cache
def oracle(limit: float) -> list[dict[str, Tensor]]:
    return on_processes(1, functools.partial(sharded, limit))[0]


def test_gradients_are_added_in_float32_and_the_model_is_the_rounded_masters() -> None:
    """By hand: 1 + 2^-9 + 2^-9 is 1 in bfloat16 at every addition, and 1 + 2^-8 in float32."""
    model = with_masters(nn.Linear(1, 1, bias=False), torch.bfloat16)
    optimizer = adamw(model, 0.1)  # far above the spacing of bfloat16
    for _ in range(2):
        for slope in (1.0, 2**-9, 2**-9):
            model(torch.full((1, 1), slope, dtype=torch.bfloat16)).sum().backward()
        assert masters(model).weight.grad.item() == 1 + 2**-8 and model.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
        assert masters(model).weight.grad is None
        assert torch.equal(model.weight, masters(model).weight.bfloat16())
    assert model.state_dict().keys() == masters(model).state_dict().keys() == {"weight"}


def test_frozen_and_float32_parameters_are_their_own_masters() -> None:
    actor = Qwen(SMALL).init_weights(0)
    critic = World("cpu").shard(wide := ppo.Critic(actor), CFG, float32=[wide.head])
    assert masters(critic).head.weight is critic.head.weight and critic.head.weight.dtype == torch.float32
    assert masters(critic).body.model.norm.weight is not critic.body.model.norm.weight
    optimizer = adamw(critic, LR)
    critic(torch.arange(8)[None]).sum().backward()
    optimizer.step()
    assert critic.head.bias.item() == pytest.approx(-LR)
    reference = World("cpu").shard(actor.requires_grad_(False), CFG)
    assert masters(reference) is reference and {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    assert masters(World("cpu").shard(model := Qwen(SMALL), sft.Config())) is model


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_weights_that_come_back_are_those_that_compute(tmp_path) -> None:
    """From a checkpoint, and from a snapshot within a step."""
    model, optimizer = learner()
    parts = {"model": (model, optimizer)}
    step(model, optimizer, PARTS[0], 1.0)
    kept, computing = numbers(model), copy.deepcopy(model.state_dict())
    write_shards(tmp_path, parts)
    restore = snapshot(parts)
    other, its = learner()
    read = functools.partial(read_shards, tmp_path)
    for pair, back in (
        ((model, optimizer), restore),
        ((model, optimizer), lambda: read(parts)),
        ((other, its), lambda: read({"model": (other, its)})),
    ):
        step(*pair, PARTS[1], 1.0)
        assert not torch.equal(numbers(pair[0])["model.norm.weight"], kept["model.norm.weight"])
        back()
        assert all(torch.equal(x, kept[name]) for name, x in numbers(pair[0]).items())
        assert all(torch.equal(x, computing[name]) for name, x in pair[0].state_dict().items())
    step(model, optimizer, PARTS[1], 1.0)
    step(other, its, PARTS[1], 1.0)
    assert all(torch.equal(x, numbers(other)[name]) for name, x in numbers(model).items())


@pytest.mark.parametrize("instructions", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}])
def test_auto_computes_in_bfloat16_where_it_is_stored_and_fast(instructions, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    world, weights = World("cpu"), torch.zeros(3, dtype=torch.bfloat16)
    for name, tensors in (("narrow", [weights]), ("mixed", [weights, weights.float()])):
        (tmp_path / name).mkdir()
        named = {str(i): t for i, t in enumerate(tensors)}
        safetensors.torch.save_file(named, tmp_path / name / "model.safetensors")
    wanted = torch.bfloat16 if any(instructions.values()) else torch.float32
    assert world.dtype("auto", tmp_path / "narrow") == wanted
    assert world.dtype("float32", tmp_path / "narrow") == torch.float32
    for other in (tmp_path / "mixed", tmp_path / "nothing", "tiny"):
        assert world.dtype("auto", other) == torch.float32
