"""The additions of docs/extending.md: the page's own code, each against numbers found by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import grpo
import tasks
from episode import Batch, Call, Episode
from isolation.result import Result
from plumbing import config
from plumbing.ranks import World
from rollout import REWARDS
from sample import generate
from sandbox import Sandbox
from tasks import PROTOCOLS, Problem, extract_answer
from tasks.blocks import split_code
from tokenizer import Source
from training.loading import BUILT

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
TABLES = (tasks._MINE, REWARDS, PROTOCOLS, grpo.ADVANTAGES, grpo.KINDS, BUILT)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def added() -> dict:
    """The names that the page's blocks define. The tables are as before afterwards."""
    kept = [dict(table) for table in TABLES]
    names = {"__name__": "mine"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        assert len([line for line in block.splitlines() if line.strip()]) < 30
        exec(block, names)
    yield names
    for table, before in zip(TABLES, kept, strict=True):
        table.clear()
        table.update(before)


def test_the_task_grades_right_and_wrong(added) -> None:
    task = tasks.get("digit_sum")
    problem = task.problem(7)
    n = int(re.search(r"of (\d+) \*", problem.question)[1])
    total, square = 0, n * n
    while square:
        square, digit = divmod(square, 10)
        total += digit
    assert task.problem(7) == problem != task.problem(8)
    given = {
        str(total): True,
        f" {total}\n": True,
        str(total + 1): False,
        "": False,
        "x" * 9: False,
        None: False,
    }
    assert {answer: task.grade(problem, answer).correct for answer in given} == given
    with Sandbox(require="none", quiet=True) as sandbox:
        assert sandbox.run(task.solution(problem)).stdout == f"{total}\n"
    assert tasks.select("mine,digit_sum") == ["digit_sum"] * 2 and tasks.split_of("digit_sum") == "train"
    for taken in ("digit_sum", "game24", "toy"):
        with pytest.raises(ValueError, match=f"{taken} is there already"):
            tasks.add(type("Other", (type(task),), {"name": taken})())


def test_the_reward(added) -> None:
    ok, error = (Result(status, "", "", 0, None, 0.0, 0.0, 0.0, False) for status in ("ok", "error"))
    episode = Episode(
        Problem("digit_sum", 0, "", 1), 0, correct=True, calls=[Call("", ok, 0), Call("", error, 0)]
    )
    episode.append([1] * 50, Source.PROMPT)
    episode.append([1] * 100, Source.POLICY, [0.0] * 100)
    episode.append([1] * 50, Source.TOOL)
    assert REWARDS["brief"](episode) == pytest.approx(1 - 0.1 - 0.2)
    episode.correct = False
    assert REWARDS["brief"](episode) == pytest.approx(-0.2)


def test_the_protocol(added) -> None:
    tags = PROTOCOLS["tags"]
    text = "First.\n<python>\nprint('</final>')\n</python> then <final>41</final>, no: <final> 42 </final>"
    assert next(split_code(text, tags)).program == "print('</final>')"
    assert extract_answer(text, "tags") == "42"
    assert (
        extract_answer("<final>\n</final>", "tags") == ""
        and extract_answer("<<<42>>> <final>4", "tags") is None
    )
    line = replace(tags, answer="Answer: {}")
    assert extract_answer("Answer: 1\nAnswer: 2 m\nThat is all.", line) == "2 m"
    assert tags.opening("Q?")[1].endswith("answer</final>.\n\nQ?")


def test_the_advantage(added) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, math.nan, 3.0, 5.0])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    mask = torch.ones(8, 3, dtype=torch.bool)
    empty = torch.zeros(8, 3)
    batch = Batch(empty.long(), empty.to(torch.int8), empty, torch.full((8,), 3), rewards, groups)
    found = grpo.ADVANTAGES["leave_one_out"].compute(batch, mask, None, 0.0, None)
    expected = [1, -1 / 3, -1 / 3, -1 / 3, -2, 0, 2, 0]
    torch.testing.assert_close(found, torch.tensor(expected)[:, None].expand(8, 3))


def test_the_loss(added) -> None:
    """With A = 1 and eps = .25: at ratio 1.25 the top of the parabola, 1.125, where the gradient vanishes."""
    old = torch.full((1, 5), -1.0)
    ratios, advantages = (
        torch.tensor([[1.0, 1.25, 1.5, 0.5, 1.0]]),
        torch.tensor([[1.0, 1.0, 1.0, -2.0, 9.0]]),
    )
    logprobs = (old + ratios.log()).requires_grad_()
    mask = torch.tensor([[True, True, True, True, False]])
    loss = grpo.KINDS["spo"](logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.25, dual_clip=None)
    hand = [-1.0, -(1.25 - 0.0625 * 2), -(1.5 - 0.25 * 2), -(-1.0 - 2 * 0.25 * 2)]
    torch.testing.assert_close(loss[0, :4], torch.tensor(hand))
    (by,) = torch.autograd.grad((loss * mask).sum(), logprobs)
    slopes = [-1.0 * 1, 0.0, -1.5 * (1 - 2), -0.5 * (-2 + 2 * 2 * 2 * 0.5)]  # -r (A - |A| (r - 1) / eps)
    torch.testing.assert_close(by[0], torch.tensor([*slopes, 0.0]), atol=1e-5, rtol=1e-5)


def test_the_model_samples_what_it_computes(added) -> None:
    """Decoding through the cache gives the log-probs of the whole sequence, with the norms in place."""
    made = BUILT["tiny-qk"](0)
    with torch.no_grad():
        for i, block in enumerate(made.model.layers):
            block.self_attn.q_norm.weight.fill_(1.5 + i)
    prompt = [5, 9, 2]
    (sample,) = generate(made, [prompt], max_new_tokens=8, seed=3)
    whole = torch.tensor([prompt + sample.tokens])
    with torch.no_grad():
        logprobs = made.head(made(whole))[0].log_softmax(-1)
    chosen = [logprobs[2 + i, t].item() for i, t in enumerate(sample.tokens)]
    assert chosen == pytest.approx(sample.logprobs, abs=1e-4)


def test_a_step_with_all_of_them_leaves_a_folder_that_transformers_opens(added, tmp_path: Path) -> None:
    sizes = {"prompts": 2, "group": 4, "updates": 2, "steps": 1, "max-tokens": 24, "slots": 8, "lr": 1e-3}
    sizes |= {"preload": "", "sandbox": "none", "device": "cpu", "out": tmp_path}
    argv = re.search(r"python mine\.py (.*)", PAGE.read_text())[1].split()
    argv += [f"--{name}={value}" for name, value in sizes.items()]
    cfg = config.parse(grpo.Config, argv=argv)
    REWARDS["brief"] = lambda episode: float(episode.tokens[-1] % 2)  # a random model solves nothing
    before = BUILT["tiny-qk"](0)
    grpo.train(cfg, World("cpu"))
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["grad_norm"] > 0 and line["skipped"] == 0
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert type(reference).__name__ == "Qwen3ForCausalLM"
    moved = 0.0
    with torch.no_grad():
        for name, weight in before.named_parameters():
            now = reference.state_dict()[name]
            moved = max(moved, (weight - now).abs().max().item())
            weight.copy_(now)
        tokens = torch.arange(12)[None]
        ours, theirs = before.head(before(tokens)), reference(tokens).logits
    assert moved > 1e-4
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
