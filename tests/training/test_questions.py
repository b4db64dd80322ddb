"""The questions of a step, and the limits of tokens that are known before anything is sampled."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from fakes import StopAfter
from ranks import on_ranks

import evaluate
import grpo
import model as models
from model import Qwen
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from rollout import Environment
from sample import generate
from tasks import PROTOCOLS, RL_START, Problem, get
from tasks.math import load
from training.evaluation import answer, questions
from training.limits import PromptLimit, check_positions
from training.questions import StepQuestions
from training.reinforcement import make_environment


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int, long: tuple = ()) -> str:
    """A file of questions "q0 a", "q1 a", ...; those in `long` have a thousand letters more."""
    return write(
        path, [{"question": f"q{i} a" + " b" * 500 * (i in long), "answer": i} for i in range(count)]
    )


def environment(tokenizer) -> Environment:
    return Environment(tokenizer, PROTOCOLS["r1ci"], None)


def of_steps(tiny, steps: range, world=None, limit: int | None = None, **options) -> list[list[Problem]]:
    cfg = grpo.Config(**options)
    found = StepQuestions(cfg, world or World("cpu"))
    if limit is not None:
        found.cfg = dataclasses.replace(cfg, max_prompt=limit)
    found.leave_out_long(environment(tiny[1]))
    return [found.problems(step) for step in steps]


def size(tokenizer, text: str) -> int:
    """Tokens of a prompt, counted without PromptLimit."""
    return len(environment(tokenizer).prompt(Problem("", 0, text, None)))


def test_a_files_rows_come_once_a_pass_in_the_seeds_order(tiny, tmp_path: Path) -> None:
    name = numbered(tmp_path / "set.jsonl", 12)
    orders = {}
    for seed in (0, 1):
        steps = of_steps(tiny, range(6), tasks=name, prompts=4, seed=seed)
        asked = [p for step in steps for p in step]
        assert all(p.index >= RL_START and get(name).problem(p.index) == p for p in asked)
        assert len({p.index for p in asked}) == 24, "the second pass has other numbers"
        rows = [p.meta["row"] for p in asked]
        assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12)) and rows[:12] != rows[12:]
        assert rows[:12] != sorted(rows[:12])
        orders[seed] = rows
        again = of_steps(tiny, range(3, 6), tasks=name, prompts=4, seed=seed)  # as a resumed run asks
        assert again == steps[3:]
    assert orders[0] != orders[1]


def test_long_rows_of_a_file_are_left_out_and_counted(tiny, tmp_path: Path, capsys) -> None:
    name = numbered(tmp_path / "set.jsonl", 9, long=(2, 5))
    rows = Counter(p.meta["row"] for step in of_steps(tiny, range(7), tasks=name, prompts=2) for p in step)
    assert set(rows) == {0, 1, 3, 4, 6, 7, 8} and set(rows.values()) == {2}
    assert capsys.readouterr().err == f"{name}: left out 2 of 9 questions, longer than --max-prompt\n"
    with pytest.raises(UsageError, match="--max-prompt 512: all 2 prompts of .* are longer"):
        of_steps(tiny, range(1), tasks=numbered(tmp_path / "long.jsonl", 2, long=(0, 1)))


def test_a_generated_question_that_is_too_long_gives_its_place_to_the_next_that_fits(tiny) -> None:
    """Of the same task, and equal on every rank and for every start; the other questions stay."""
    options = {"tasks": "gridworld,matrix_transformation", "prompts": 16}
    free = [p for step in of_steps(tiny, range(4), limit=1024, **options) for p in step]
    sizes = [size(tiny[1], p.question) for p in free]
    limit = sorted(sizes)[len(sizes) * 2 // 3]
    found = [p for step in of_steps(tiny, range(4), limit=limit, **options) for p in step]
    assert [p.task for p in found] == [p.task for p in free] and len({p.index for p in found}) == 64
    for old, new, tokens in zip(free, found, sizes, strict=True):
        assert size(tiny[1], new.question) <= limit and (new == old) == (tokens <= limit)
    assert of_steps(tiny, range(2, 4), limit=limit, **options) == [found[32:48], found[48:]]
    each = on_ranks(2, lambda world: of_steps(tiny, range(2), world, limit, **options))
    assert each[0] == each[1] == [found[:16], found[16:32]]


def test_replaced_questions_are_in_the_log(tiny) -> None:
    options = {"tasks": "gridworld,matrix_transformation", "prompts": 16}
    cfg = grpo.Config(**options)
    limit = sorted(size(tiny[1], p.question) for p in StepQuestions(cfg, World("cpu")).problems(0))[11]
    asking = StepQuestions(dataclasses.replace(cfg, max_prompt=limit), World("cpu"))
    asking.leave_out_long(environment(tiny[1]))
    asking.problems(0)
    count = asking.metrics(0)["too_long"]
    assert count > 0
    asking.problems(1), asking.problems(0)
    assert asking.metrics(0) == {"too_long": count}


def test_a_task_without_a_question_that_fits_is_refused_at_the_start(tiny) -> None:
    with pytest.raises(UsageError, match="--max-prompt 8: 1000 prompts of toy_add_sum in a row are longer"):
        of_steps(tiny, range(1), limit=8, tasks="toy_add_sum")


def test_long_questions_of_a_curriculum_are_left_out(tiny, tmp_path: Path, capsys) -> None:
    name = numbered(tmp_path / "set.jsonl", 4, long=(1,))
    lines = [{"task": name, "index": RL_START + i, "p": 0.5, "potential": 1.0} for i in range(4)]
    file = write(tmp_path / "curriculum.jsonl", lines)
    asked = [p for step in of_steps(tiny, range(3), curriculum=file, prompts=2) for p in step]
    assert len({p.question for p in asked}) == 3 and max(len(p.question) for p in asked) < 10
    assert "left out 1 of 4 questions, longer than --max-prompt" in capsys.readouterr().err


# -- evaluation ------------------------------------------------------------------------------------


def test_evaluation_takes_the_next_question_that_fits(tiny, tmp_path: Path) -> None:
    name = numbered(tmp_path / "set.jsonl", 9, long=(0, 3))
    fits = PromptLimit(environment(tiny[1]), 100)
    asked = questions([name, "toy_add_sum"], 8, fits)
    assert [p.index for p in asked if p.task == name] == [1, 2, 4, 5] and fits.left_out == 2
    assert [p.index for p in asked if p.task != name] == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["a", "ä" * 30, "12" * 20, "\U0001f600", "e\u0301" * 9])
def test_a_prompt_fits_exactly_up_to_the_limit(tiny, text: str) -> None:
    tokens = size(tiny[1], text)
    for limit in (tokens - 1, tokens, tokens + 1, 500):
        assert PromptLimit(environment(tiny[1]), limit)(Problem("", 0, text, None)) == (limit >= tokens)
    assert PromptLimit(environment(tiny[1]), None)(Problem("", 0, text * 9999, None))


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--sandbox", "none", "--protocol", "text", *words])
    config.run(evaluate.main)


def test_evaluate_says_how_many_questions_a_file_has_and_how_many_it_takes(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    name = numbered(tmp_path / "set.jsonl", 6, long=(0,))
    write(tmp_path / "set.jsonl", [json.loads(line) for line in Path(name).read_text().splitlines() * 2])
    command(monkeypatch, "--tasks", name, "--questions", "3", "--max-tokens", "2", "--max-prompt", "100")
    shown = capsys.readouterr().out
    assert f"{name}: 3 of its 6 different questions (12 rows) are asked" in shown
    assert "--max-prompt 100: left out 1 questions with longer prompts" in shown


@pytest.mark.parametrize(
    "words, row, reason",
    [
        ([], {"question": "\ud800?", "answer": 1}, "line 1: half a surrogate pair"),
        (["--max-prompt", "8"], {"question": "q", "answer": 1}, "--max-prompt 8: all 1 prompts are longer"),
        (["--max-tokens", "1020"], {"question": "q", "answer": 1}, "the model has 1024 positions"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    tmp_path: Path, monkeypatch, capsys, words, row, reason
) -> None:
    name = write(tmp_path / "set.jsonl", [row])
    with pytest.raises(SystemExit) as left:
        command(monkeypatch, "--tasks", name, *words)
    shown = capsys.readouterr().err
    assert left.value.code == 2 and reason in shown.splitlines()[-1]
    assert "Traceback" not in shown


def test_a_rows_own_head_prompt_is_the_prompts(tiny, tmp_path: Path) -> None:
    """Before the protocol's; --system-file's is before both."""
    user = {"role": "user", "content": "q"}
    rows = [{"messages": [{"role": "system", "content": f"Head {i}."}, user], "answer": 1} for i in (0, 1)]
    name = write(tmp_path / "set.jsonl", rows)
    asking = environment(tiny[1])
    for i in (0, 1, 0):
        problem = get(name).problem(i)
        assert (
            asking.prompt(problem) == tiny[1].chat(f"Head {i}.", "q") and asking.head(problem) == f"Head {i}."
        )
    asking.system = "Mine."
    assert asking.prompt(get(name).problem(0)) == tiny[1].chat("Mine.", "q")


# -- positions -------------------------------------------------------------------------------------


def test_no_more_tokens_than_the_model_has_positions(tiny, tmp_path: Path) -> None:
    most = tiny[0].config.max_position_embeddings
    check_positions(tiny[0], most - 24, 24)
    with pytest.raises(
        UsageError, match=f"--max-tokens 24 .* {most - 23} tokens: the model has {most} positions"
    ):
        check_positions(tiny[0], most - 23, 24)
    with pytest.raises(UsageError, match="positions"):
        cfg = evaluate.Config(max_tokens=1000)
        environment = make_environment(cfg, cfg, tiny[1], None)
        answer(tiny[0], environment, [get("toy_add_sum").problem(0)], cfg, World("cpu"))
    cfg = grpo.Config(out=str(tmp_path / "run"), max_prompt=600, sandbox="none", steps=1)
    with pytest.raises(UsageError, match="--max-tokens 512 .* 600 tokens: the model has 1024 positions"):
        grpo.train(cfg, World("cpu"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_p": 0.9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # two engines
def test_logits_that_are_not_finite_end_sampling_with_a_line(value: float, options: dict, dtype) -> None:
    """One damaged number of the head is enough. A finite model goes on."""
    model = Qwen(dataclasses.replace(models.TINY, tie_word_embeddings=False)).init_weights(0).to(dtype)
    generate(model, [[5, 6]], max_new_tokens=3, **options)
    with torch.no_grad():
        model.lm_head.weight[7, 3] = value
    with pytest.raises(UsageError, match="the logits are NaN or infinite") as error:
        generate(model, [[5, 6]], max_new_tokens=3, **options)
    assert "\n" not in str(error.value)


# -- a changed file --------------------------------------------------------------------------------


def test_a_resumed_run_must_have_the_questions_it_began_with(tmp_path: Path) -> None:
    name = numbered(tmp_path / "set.jsonl", 5)
    base = {"tasks": name, "steps": 2, "prompts": 2, "group": 2, "max_prompt": 64, "max_tokens": 4}
    base |= {"sandbox": "none", "out": str(tmp_path / "run"), "protocol": "text"}
    grpo.train(grpo.Config(**base), StopAfter(1))
    numbered(tmp_path / "set.jsonl", 6)
    load.cache_clear()  # as in another process
    with pytest.raises(UsageError, match="questions has changed since"):
        grpo.train(grpo.Config(**base, resume=True), World("cpu"))
    numbered(tmp_path / "set.jsonl", 5)
    load.cache_clear()
    grpo.train(grpo.Config(**base, resume=True), World("cpu"))
    assert (tmp_path / "run" / "final").exists()
