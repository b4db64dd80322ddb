"""The memory plan: counts against real tensors, peaks against measured processes, verdicts."""

import functools
import importlib.util
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model as models
from analysis import plan
from model import TINY, Block, Config, KVCache, Qwen, causal, rotary
from plumbing import config
from plumbing.config import UsageError

ROOT = Path(__file__).parents[2]
EIGHT = plan.Config(gpus=8, memory_gb=80, prompt=2048, response=8192, group=8, spare=0.0)
# of Qwen2.5's model cards: billions of parameters outside the embeddings
WITHOUT_EMBEDDINGS = {"0.5B": 0.36, "1.5B": 1.31, "3B": 2.77, "7B": 6.53, "14B": 13.1, "32B": 31.0}


@pytest.fixture
def folder(tmp_path):
    """Makes a checkpoint folder that holds nothing but a config.json."""

    def make(shape: Config, **more) -> str:
        raw = asdict(shape) | {"model_type": "qwen2"} | more
        del raw["extra"]
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return str(tmp_path)

    return make


def printed(capsys, *words: str) -> str:
    plan.main(list(words))
    return capsys.readouterr().out


# -- counts against real tensors -------------------------------------------------------------------


@pytest.mark.parametrize("name", plan.SHAPES)
def test_parameters_are_those_of_the_model(name):
    shape = plan.SHAPES[name]
    with torch.device("meta"):
        model = Qwen(shape)
    assert plan.parameters(shape) == sum(p.numel() for p in model.parameters())
    assert plan.block_parameters(shape) == sum(p.numel() for p in model.model.layers[0].parameters())
    tables = plan.embedding_parameters(shape) * (1 if shape.tie_word_embeddings else 2)
    assert (plan.parameters(shape) - tables) / 1e9 == pytest.approx(WITHOUT_EMBEDDINGS[name], rel=0.02)


class FusedNorm(torch.autograd.Function):
    """What CUDA's kernel keeps of a norm: its input and 1 / rms."""

    @staticmethod
    def forward(ctx, x, weight):
        scale = x.float().square().mean(-1, keepdim=True).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return (x.float() * scale * weight).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # planned: a CPU's, and CUDA's
def test_activations_are_what_autograd_keeps_of_a_block(dtype, monkeypatch):
    attend = causal
    if dtype == torch.bfloat16:
        monkeypatch.setattr(models.RMSNorm, "forward", lambda self, x: FusedNorm.apply(x, self.weight))
        attend = functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    shape = Config(64, 128, 352, 1, 4, 2)
    block, kept, tokens = Block(shape).to(dtype), {}, 2 * 48
    x = torch.randn(2, 48, 128, dtype=dtype, requires_grad=True)
    tables = rotary(torch.arange(48)[None], shape)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # not freed, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x, *tables, attend)
    for known in (*block.parameters(), *tables):
        kept.pop(known.untyped_storage().data_ptr(), None)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # beside the large ones: 1 / rms of both norms, and attention's logarithms, in float32
    small = 4 * tokens * (2 + shape.num_attention_heads)
    assert found == plan.block_activations(shape, dtype.itemsize) * tokens + small


def test_cache_bytes_are_those_of_the_cache():
    cache = KVCache(TINY, slots=3, max_len=9, dtype=torch.bfloat16)
    assert cache.k.nbytes + cache.v.nbytes == 3 * 10 * plan.cache_per_token(TINY, 2)
    assert plan.cache_per_token(plan.SHAPES["7B"], 2) == 56 * 1024
    assert plan.cache_per_token(plan.SHAPES["14B"], 2) == 192 * 1024


def test_eight_gpus_while_sampling_by_hand():
    """bfloat16 weights whole, q, k and v once more, float32 weights and moments in eighths: 2 P + 12 P / 8;
    PPO: its critic's 12 / 8 too, of a body without the head. 28 x (3584 + 2 x 512) x 3585 are .463e9."""
    for name, billions, qkv in (("7B", 7.616, 0.4625), ("14B", 14.770, 1.7620)):
        shape, found = plan.SHAPES[name], {}
        for algorithm in ("grpo", "ppo"):
            parts = plan.rollout(shape, replace(EIGHT, algorithm=algorithm), 0)
            found[algorithm] = (sum(parts.values()) - parts["working (prompts)"]) / 1e9
        assert found["grpo"] == pytest.approx(3.5 * billions + 2 * qkv, rel=0.001)
        body = billions - 152064 * shape.hidden_size / 1e9
        assert found["ppo"] == pytest.approx(3.5 * billions + 1.5 * body + 2 * qkv, rel=0.001)


# -- peaks against measured processes --------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """bench/memory.py; its folder comes last, as rollout.py and sandbox.py are in both."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "bench")])
    spec = importlib.util.spec_from_file_location("bench_memory", ROOT / "bench" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize("what", ["update", "rollout"])
def test_the_plan_is_within_a_tenth_of_the_measured_peak(what, memory):
    if what == "update":
        work = memory.Work("62M untied", "grpo", length=32, tokens=64)
    else:
        work = memory.Work("54M", "sample", length=2048, slots=8, prompt=32, new=2)
    assert work.planned() == pytest.approx(memory.measure(work, keep_freed=False), rel=0.1)


# -- what fits, and what is said -------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", plan.ALGORITHMS)
@pytest.mark.parametrize("name", plan.SHAPES)
@pytest.mark.parametrize("gpus", [1, 8])
def test_what_the_verdict_tells_to_change_makes_it_fit(name, algorithm, gpus):
    shape = plan.SHAPES[name]
    cfg = replace(EIGHT, gpus=gpus, algorithm=algorithm, spare=None)
    words = plan.report(shape, cfg).splitlines()[-1]
    if words == "verdict     it fits":
        assert sum(plan.update(shape, cfg).values()) <= 0.9 * 80e9
        assert algorithm == "sft" or sum(plan.rollout(shape, cfg, 1).values()) <= 0.9 * 80e9
        return
    assert "it does not fit: the update lacks" in words or "it does not fit: the rollout lacks" in words
    if "change to" in words:
        change = config.parse(plan.Config, argv=words.split("change to ")[1].split())
        chosen = {key: getattr(change, key) for key in ("checkpointing", "offload")}
        chosen["gpus"] = max(gpus, change.gpus)
    else:
        chosen = {"checkpointing": True, "offload": True}
        chosen["memory_gb"] = float(re.search(r"take (\d+) GB", words)[1])
    assert plan.report(shape, replace(cfg, **chosen)).endswith("it fits")


def test_as_many_slots_as_fit_and_no_more():
    shape = plan.SHAPES["14B"]
    cfg = replace(EIGHT, prompts=128)
    slots = plan.fitting_slots(shape, cfg)
    assert 0 < slots < cfg.episodes == 128
    assert (
        sum(plan.rollout(shape, cfg, slots).values())
        <= 80e9
        < sum(plan.rollout(shape, cfg, slots + 1).values())
    )
    assert plan.fitting_slots(shape, replace(cfg, prompts=4)) == 8, "a rank has one question"
    too_many = replace(cfg, slots=slots + 1, checkpointing=True)
    assert plan.report(shape, too_many).endswith(f"change to --slots {slots}")


def test_the_longest_sequence_is_never_split():
    assert replace(EIGHT, micro_tokens=512).tokens == 2048 + 8192
    short = replace(EIGHT, prompt=10, response=20, micro_tokens=2048)
    assert short.tokens == 2048


def test_checkpointing_and_offload_take_less():
    shape = plan.SHAPES["7B"]
    peaks = [
        sum(plan.update(shape, replace(EIGHT, **change)).values())
        for change in ({}, {"checkpointing": True}, {"checkpointing": True, "offload": True})
    ]
    assert peaks[0] > 2 * peaks[1] > 2 * peaks[2]
    host = plan.host(shape, EIGHT) * 8
    assert host == pytest.approx(16 * plan.parameters(shape))  # weights, gradients, two moments in float32


def test_the_command_reads_nothing_but_the_configuration(folder, capsys):
    out = printed(capsys, "--model", folder(plan.SHAPES["7B"]), "--gpus", "8", "--checkpointing")
    assert out.splitlines()[-1] == "verdict     it fits"
    assert "7.62 B parameters, 8 x 80 GB" in out and "56 KiB a token" in out and "bottleneck  rollouts" in out
    rows = {
        line[:22].strip(): line[22:].split()
        for line in out.splitlines()
        if re.search(r"\d\.\d\d( +-)?$", line)
    }
    sums = [
        sum(float(row[i]) for kind, row in rows.items() if kind not in ("sum", "may take") and row[i] != "-")
        for i in (0, 1)
    ]
    assert sums == pytest.approx([float(x) for x in rows["sum"]], abs=0.05)


def test_a_shape_has_a_name_and_the_docs_have_its_figures(folder, capsys):
    """docs/scale.md gives the command for one cell of its table."""
    text = (ROOT / "docs" / "scale.md").read_text()
    words = "--gpus 8 --prompts 128 --checkpointing"
    assert f"python -m analysis.plan --model 7B {words}\n" in text
    named = printed(capsys, "--model", "7B", *words.split())
    assert named == printed(capsys, "--model", folder(plan.SHAPES["7B"]), *words.split())
    peak = float(re.search(r"^sum +(\S+)", named, re.M)[1])
    slots = int(re.search(r"^slots +(\d+)", named, re.M)[1])
    row = next(line for line in text.splitlines() if line.startswith("| 7B | 7.62 B | 56 | GRPO"))
    update, fitting = row.split(" | ")[6].split(" / ")
    assert float(update) == pytest.approx(peak, abs=0.06) and int(fitting) == slots


def test_bad_input_is_one_line(folder):
    with pytest.raises(UsageError, match="no such folder.*7B"):
        plan.main(["--model", "nowhere"])
    with pytest.raises(UsageError, match="model_type is .*llama"):
        plan.main(["--model", folder(TINY, model_type="llama")])
    with pytest.raises(UsageError, match="did you mean grpo"):
        plan.main(["--algorithm", "gpro"])
    with pytest.raises(UsageError, match="--device gpu; did you mean cpu"):
        plan.main(["--device", "gpu"])
    for more in (["--gpus", "2"], ["--offload"], ["--published"]):
        with pytest.raises(UsageError, match="one rank"):
            plan.main(["--device", "cpu", *more])


def test_the_published_runs_are_in_the_docs_and_add_up(capsys):
    plan.main(["--published", "--gpus", "8"])
    printed = capsys.readouterr().out
    assert printed in Path("docs/scale.md").read_text()
    row = next(line for line in printed.splitlines() if line.startswith("R1-CI 7B")).split()
    slots, paged, seconds, steps, days = (float(cell.replace(",", "")) for cell in row[2:7])
    # by hand: a rank has 16 questions x 5 episodes; reading 2 bytes a weight for each token, twice: 70 < 80
    cfg = plan.Config(model="7B", gpus=8, prompts=128, group=5, kl_coef=0.001, checkpointing=True)
    assert (slots, paged) == (plan.fitting_slots(plan.SHAPES["7B"], cfg), 80) and slots == 70
    weights, cache = 2 * 8192 * 2 * 7.07e9 / 2e12, 80 * 8192 * 57344 * (2048 + 4096) / 2e12
    update = 80 * 10240 * 5 * (2 * 7.07e9 + 2 * 3584 * 10240 * 28) / 312e12
    assert seconds == pytest.approx(weights + cache + update, rel=0.01)
    assert days == pytest.approx(seconds * steps / 86400, abs=0.05)
