"""The benchmarks run: every script once, with tiny shapes and without a peer. Their arithmetic is checked by
hand; the measured numbers are not judged.
"""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from model import Config, Qwen
from rollout import Environment, Limits, Request, rollout
from sample import Sampler
from tasks import PROTOCOLS

BENCH = Path(__file__).parent.parent / "bench"
QUICK = ["--against", "none", "--repeats", "1", "--warmup", "0"]
TINY = {
    "decode": "--small-shape toy --batches 2 --large-shape toy --large-batches 2 --prompt 5 --new 3"
    " --large-new 3 --group 2",
    "rollout": "--shape toy --rollouts 4 --group 2 --most 60 --sleepers 4 --seconds 0.01 --workers 2",
    "train": "--shape toy --sequences 4 --most 40 --micro-tokens 64",
    "grpo_step": "--shape toy --prompts 2 --group 2 --new 128",
    "head": "--vocabulary 500 --width 64 --positions 16 --length 8",
    "imports": "--against none",
    "busy": "--shape toy --rows 2 --new 4 --sequences 2 --most 40 --micro-tokens 64",
    "ranks": "--ranks 1 --shape toy --group 2 --prompt 4 --new 4 --steps 1",
}


@pytest.fixture
def bench(monkeypatch):
    """Import a script of bench/ by name. Its folder comes last, as rollout.py and sandbox.py are in both."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCH)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # bench/busy.py takes it away
    threads = torch.get_num_threads()

    def script(name: str):
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield script
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_alone_and_writes_its_table(name, bench, tmp_path, capsys):
    file = tmp_path / "rows.json"
    rows = bench(name).main([*QUICK, *TINY[name].split(), "--json", str(file)])
    printed = capsys.readouterr().out
    written = json.loads(file.read_text())
    assert len(written["rows"]) == len(rows) > 0
    assert written["machine"]["packages"]["torch"] == torch.__version__
    for row in rows:
        assert f"| {row.work} | {row.ours} |" in printed
        assert (row.ours == "not measured") == row.work.startswith("GPU")
        assert row.ratio is None or name == "busy", "there was no peer"


def test_every_benchmark_is_run_here():
    shared = {"timing", "shapes", "scripted"}
    by_hand = {"graders", "kills", "load", "memory", "questions", "rounding", "sandbox", "wording"}
    assert {p.stem for p in BENCH.glob("*.py")} == set(TINY) | shared | by_hand


def test_turns_rotate_and_the_first_rounds_do_not_count(bench):
    timing = bench("timing")
    order = []
    contestants = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    found = timing.take_turns(contestants, argparse.Namespace(warmup=1, repeats=2))
    assert "".join(order) == "abc" + "bca" + "cab"
    assert found == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_a_ratio_is_against_the_fastest_peer(bench):
    timing = bench("timing")
    turns = {"ours": [1.0, 2.0, 9.0], "slow": [8.0, 8.0, 8.0], "fast": [5.0, 5.0, 1.0]}
    row = timing.speed_row("work", 100, turns, ["slow", "fast", "absent"])
    assert row.ours == "50.0 tokens/s" and row.against == "fast: 20.0 tokens/s" and row.ratio == 2.5


def test_the_limit_of_a_step_is_reading_for_few_rows_and_multiplying_for_many(bench):
    """By hand: width 4, one layer, feed-forward 6, vocabulary 10, 2 heads of 2, 1 kv head, tied, float32."""
    decode = bench("decode")
    model = Qwen(Config(10, 4, 6, 1, 2, 1, tie_word_embeddings=True))
    attention = (4 * 4 + 4) + 2 * (4 * 2 + 2) + 4 * 4  # q with bias, k and v with bias, o
    weights = attention + 3 * 4 * 6 + 2 * 4 + 4 + 10 * 4  # feed-forward, norms, head
    cache = 2 * 2 * 4  # keys and values of a kv head of 2, float32, per token
    read = decode.least_seconds(model, 1, 5, bandwidth=2.0, peak=math.inf)
    assert read == pytest.approx((4 * weights + 5 * cache) / 2.0)
    multiply = decode.least_seconds(model, 3, 5, bandwidth=math.inf, peak=2.0)
    assert multiply == pytest.approx((2 * weights * 3 + 4 * 3 * 5 * 4) / 2.0)


def test_a_script_decides_lengths_and_calls(bench):
    """Two turns of given lengths around one result; the closing tokens stand where the turns end."""
    scripted, shapes = bench("scripted"), bench("shapes")
    tokenizer = scripted.small_tokenizer()
    block = scripted.call(tokenizer)
    stop = (tokenizer.stop_ids[0],)
    turns = [scripted.Turn(20, block), scripted.Turn(9, stop)]
    sampler = Sampler(shapes.random_model("toy", torch.float32), 1, 200)
    player = scripted.Scripted(sampler, {(1, 2): turns}, scripted.plain_tokens(tokenizer, 1024))
    problem = scripted.questions(1, 50)[0]
    box = scripted.Instant("77")
    ask = [Request(problem, 0, (1, 2))]
    episode = rollout(player, Environment(tokenizer, PROTOCOLS["r1ci"], box, Limits(max_tokens=100)), ask)[0]
    assert len(tokenizer.chat(*PROTOCOLS["r1ci"].opening(problem.question))) == 59
    result = tokenizer.encode(PROTOCOLS["r1ci"].wrap("77"))
    assert tuple(episode.tokens[59 + 20 - len(block) : 59 + 20]) == block
    assert episode.tokens[79 : 79 + len(result)] == result
    assert len(episode.policy_tokens) == 29 and episode.tokens[-1] == stop[0] and episode.finish == "stop"
    assert [c.code for c in episode.calls] == ["print(1)"]


def test_the_twin_has_the_same_weights(bench):
    """transformers must compute the same logits, from the very same memory."""
    pytest.importorskip("transformers", reason="the oracle extra is not installed")
    shapes = bench("shapes")
    model = shapes.random_model("toy", torch.float32)
    other = shapes.twin(model)
    tokens = torch.randint(1024, (2, 7))
    with torch.no_grad():
        expected = model.head(model(tokens))
        torch.testing.assert_close(other(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    assert other.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert other.num_parameters() == sum(p.numel() for p in model.parameters())
