"""Accuracy tables: pass@k, errors and the test between runs against brute force; evaluation is clean."""

import itertools
import json
import math
import random
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import demo
import evaluate
from analysis import compare as comparing
from analysis import plot, printing
from analysis.compare import permutation_test
from episode import Episode
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from sandbox import Sandbox
from tasks import SFT_START, Problem, get, names, toy
from tokenizer import Source
from training import evaluation
from training.evaluation import pass_at_k
from training.loading import load_model
from training.reinforcement import make_environment
from trajectories.habits import mixture

torch.set_num_threads(1)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_against_all_subsets(n: int) -> None:
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(answers, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}"):
        pass_at_k(n, c, k)


def episode(correct: bool, task: str = "toy_add_sum", index: int = 0, **fields) -> Episode:
    return Episode(Problem(task, index, f"{task}, question {index}", 0), 0, correct=correct, **fields)


def test_summary_by_hand() -> None:
    """Three questions, two samples each, with 2, 1 and 0 right."""
    rows = [episode(r, finish="stop") for r in (True, True, True, False, False, False)]
    row = evaluation.summary(rows, samples=2)
    assert row["questions"] == 3 and row["episodes"] == 6 and row["accuracy"] == 0.5
    assert row["pass@2"] == pytest.approx(2 / 3)
    assert row["stderr"] == pytest.approx((0.25 / 3) ** 0.5)  # variance of 1, .5, 0 is .25
    assert row["pass@2_stderr"] == pytest.approx(1 / 3)  # variance of 1, 1, 0 is 1/3


def test_asking_again_without_new_answers_makes_nothing_more_certain() -> None:
    """Answers to one question are one cluster: the same answers eight times over have the same error."""
    once = [episode(r, index=i) for i, r in enumerate([True, False, False, True, False])]
    eight = [e for e in once for _ in range(8)]
    a, b = evaluation.summary(once, 1), evaluation.summary(eight, 8)
    assert b["accuracy"] == a["accuracy"] and b["stderr"] == pytest.approx(a["stderr"], rel=1e-12)
    assert b["pass@8"] == a["accuracy"] and b["pass@4"] == a["accuracy"] and "pass@16" not in b


def test_one_question_has_no_standard_error() -> None:
    assert evaluation.summary([episode(True)])["stderr"] is None


def test_errors_of_tasks_add_up_as_independent_ones() -> None:
    """sqrt(.3^2 + .4^2) / 2 = .25; where one task has no error, their mean has none."""
    rows = [{"questions": 9, "accuracy": a, "stderr": s} for a, s in ((0.5, 0.3), (0.7, 0.4))]
    mean = comparing.macro(rows)
    assert mean["accuracy"] == pytest.approx(0.6) and mean["stderr"] == pytest.approx(0.25)
    assert mean["tasks"] == 2 and mean["questions"] == 18
    assert comparing.macro([*rows, {"questions": 1, "accuracy": 1, "stderr": None}])["stderr"] is None


def test_pass_at_k_is_what_k_answers_of_a_sampler_reach() -> None:
    """A question whose answers are right with chance .3: the mean estimate from 8 answers is 1 - .7 ** k."""
    for k in (1, 2, 4, 8):
        chance = [math.comb(8, c) * 0.3**c * 0.7 ** (8 - c) for c in range(9)]
        expected = sum(p * pass_at_k(8, c, k) for c, p in enumerate(chance))
        assert expected == pytest.approx(1 - 0.7**k)


def test_every_task_has_the_same_weight_in_the_mean_of_tasks() -> None:
    """Task a: 1 of 4 right; task b: 2 of 2. Macro (1/4 + 1) / 2, micro 3 / 6."""
    a = [episode(i == 0, "toy_add_sum", i) for i in range(4)]
    b = [episode(True, names("facts")[0], i) for i in (0, 1)]
    found = evaluate.results(a + b, evaluate.Config())
    macro, micro = found["overall"]["macro"], found["overall"]["micro"]
    assert macro["accuracy"] == 0.625 and micro["accuracy"] == 0.5
    assert macro["stderr"] == pytest.approx((1 / 16 + 0) ** 0.5 / 2)  # a: variance 1/4 over 4 questions
    assert found["families"]["toy"]["accuracy"] == 0.25 and found["families"]["facts"]["accuracy"] == 1
    printed = evaluate.table(found)
    assert "toy, mean of 1 tasks" in printed and "mean of 2 tasks" in printed and "all questions" in printed
    assert "0.625 +-0.125" in printed and "0.250 +-0.250" in printed
    json.dumps(found, allow_nan=False)


# -- what is asked -----------------------------------------------------------------------------------------


def test_sampling_is_the_papers_unless_given() -> None:
    """R1-Code-Interpreter evaluates at temperature .6; ReTool at 1 with top-p .7, 32 answers a question."""
    r1ci, retool = evaluate.Config(), evaluate.Config(protocol="retool")
    assert (r1ci.temperature, r1ci.top_p, r1ci.samples) == (0.6, 1.0, 1)
    assert (retool.temperature, retool.top_p, retool.samples) == (1.0, 0.7, 32)
    own = evaluate.Config(protocol="retool", temperature=0.0, top_p=1.0, samples=1)
    assert (own.temperature, own.top_p, own.samples) == (0.0, 1.0, 1)


def test_the_same_answer_is_not_asked_for_many_times(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--protocol", "retool", "--temperature", "0"])
    with pytest.raises(SystemExit):
        config.run(evaluate.main)
    assert "all 32 answers would be the same; give --samples 1" in capsys.readouterr().err


def test_no_two_questions_are_alike_and_a_small_set_is_asked_whole() -> None:
    tasks = names("toy", "test")
    asked = evaluation.questions(tasks, 3 * len(tasks))
    assert [p.task for p in asked] == tasks * 3 and {p.index for p in asked} == {0, 1, 2}
    few = evaluation.questions(names("facts"), 10**6)  # a closed list
    assert len({p.question for p in few}) == len(few) < 10**6


def answers(tiny, asked, sandbox, **options) -> list[Episode]:
    cfg = evaluate.Config(**options)
    return evaluate.answer(tiny[0], make_environment(cfg, cfg, tiny[1], sandbox), asked, cfg, World("cpu"))


def test_a_checker_that_crashes_has_refused_the_answer(tiny, monkeypatch, capsys) -> None:
    """One line, a wrong answer, and a number in the results: nobody's answer is worth a crash."""

    def crash(self, problem, answer):
        raise ZeroDivisionError("in the checker")

    monkeypatch.setattr(type(get("toy_add_sum")), "grade", crash)
    asked = [get("toy_add_sum").problem(0)]
    (found,) = answers(tiny, asked, None, protocol="text", max_tokens=4)
    assert not found.correct
    shown = capsys.readouterr().err
    assert "in the checker" in shown and "toy_add_sum, question 0, answer None" in shown
    assert evaluate.results([found], evaluate.Config())["grader_failed"] == 1


# -- comparing runs ----------------------------------------------------------------------------------------


def by_enumeration(differences: list[int]) -> float:
    """Share of all choices of signs whose sum is at least as far from 0."""
    seen = abs(sum(differences))
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(abs(s) >= seen for s in sums) / len(sums)


@pytest.mark.parametrize("seed", range(30))
def test_permutation_test_against_all_choices_of_signs(seed: int) -> None:
    rng = random.Random(seed)
    differences = [rng.randint(-4, 5) for _ in range(rng.randint(1, 11))]
    assert permutation_test(differences) == pytest.approx(by_enumeration(differences), abs=1e-12)


@pytest.mark.parametrize("gained, lost", [(1, 0), (5, 0), (8, 2), (2, 8), (3, 3), (40, 15), (300, 240)])
def test_with_one_answer_each_it_is_mcnemars_exact_test(gained: int, lost: int) -> None:
    """p = 2 P(X <= min(gained, lost)), X binomial with 1/2; questions without a difference do not count."""
    n = gained + lost
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(min(gained, lost) + 1))
    differences = [1] * gained + [-1] * lost + [0] * 17
    assert permutation_test(differences) == pytest.approx(float(min(1, 2 * tail)), abs=1e-12)


def test_permutation_test_with_many_questions_against_whole_numbers() -> None:
    """500 questions with 32 answers each; the distribution of the sum, counted exactly."""
    rng = random.Random(0)
    differences = [max(-32, min(32, round(rng.gauss(0.6, 8)))) for _ in range(500)]
    ways = {0: 1}
    for d in differences:
        new: dict[int, int] = {}
        for total, count in ways.items():
            for step in (d, -d):
                new[total + step] = new.get(total + step, 0) + count
        ways = new
    extreme = sum(n for total, n in ways.items() if abs(total) >= abs(sum(differences)))
    exact = float(Fraction(extreme, 2 ** len(differences)))
    assert 1e-4 < exact < 0.5
    assert permutation_test(differences) == pytest.approx(exact, rel=1e-9)
    assert permutation_test([]) == permutation_test([0, 0]) == permutation_test([3, -3]) == 1.0


def save(path: Path, right: dict[tuple[str, int], list[bool]], **options) -> str:
    """A results file of a run with these right answers."""
    samples = len(next(iter(right.values())))
    episodes = [episode(r, *question) for question, answers in right.items() for r in answers]
    path.write_text(json.dumps(evaluate.results(episodes, evaluate.Config(samples=samples, **options))))
    return str(path)


def test_compare_by_hand(tmp_path: Path) -> None:
    """Six questions of two tasks. A has one answer each, B two; B is better by 1, .5, 1, 1, 0 and .5: of the
    2^5 choices of signs two are as extreme, so p = 1/16."""
    keys = [("toy_add_sum", i) for i in range(4)] + [("toy_add_last", i) for i in range(2)]
    a = save(tmp_path / "a.json", dict(zip(keys, [[False]] * 4 + [[True], [False]], strict=True)), model="x")
    b_right = [[True, True], [True, False], [True, True], [True, True], [True, True], [False, True]]
    b = save(tmp_path / "b.json", dict(reversed(list(zip(keys, b_right, strict=True)))), model="y")
    lines = comparing.compare([a, b]).split("\n")
    assert "--model x" in lines[0] and "--model y" in lines[1] and "--samples 2" in lines[1]
    assert "--top-p" not in lines[0]
    words = {line.split("  ")[0]: line.split() for line in lines}
    assert words["all questions"][2:] == [
        "6", "0.167", "+-0.167", "0.833", "+-0.105", "+0.667", "+-0.167", "0.0625"
    ]  # fmt: skip
    assert words["toy_add_sum"][2] == "0.000" and words["toy_add_sum"][4] == "0.875"
    assert words["mean of 2 tasks"][5:6] == ["0.250"]  # A: (0/4 + 1/2) / 2
    assert any(line.startswith("code_ratio") for line in lines)


def test_compare_is_blind_to_order_and_antisymmetric(tmp_path: Path) -> None:
    keys = [("toy_add_sum", i) for i in range(5)]
    a = save(tmp_path / "a.json", {k: [i < 1] for i, k in enumerate(keys)})
    b = save(tmp_path / "b.json", {k: [i < 4] for i, k in reversed(list(enumerate(keys)))})
    forth, back = (
        next(x for x in comparing.compare(p).split("\n") if x.startswith("all")) for p in ([a, b], [b, a])
    )
    assert "+0.600" in forth and "-0.600" in back and forth.split()[-1] == back.split()[-1] == "0.25"


def test_compare_refuses_other_questions_and_other_files(tmp_path: Path) -> None:
    a = save(tmp_path / "a.json", {("toy_add_sum", 0): [True], ("toy_add_sum", 1): [True]})
    b = save(tmp_path / "b.json", {("toy_add_sum", 0): [True], ("toy_add_sum", 2): [True]})
    with pytest.raises(
        UsageError, match=r"1 only in .*a.json, 1 only in .*b.json; one is toy_add_sum, question 1"
    ):
        comparing.compare([a, b])
    same_number = json.loads(Path(a).read_text())
    same_number["questions"][0]["digest"] = "another text"
    (tmp_path / "c.json").write_text(json.dumps(same_number))
    with pytest.raises(UsageError, match="different questions"):
        comparing.compare([a, str(tmp_path / "c.json")])
    for bad in ("{", "[]", "{}", '{"overall": {"micro": {}}, "questions": [{}]}'):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(UsageError, match="bad.json: no results"):
            comparing.compare([a, str(tmp_path / "bad.json")])
    with pytest.raises(UsageError, match="No such file"):
        comparing.compare([a, str(tmp_path / "none.json")])
    with pytest.raises(UsageError, match="A.json B.json"):
        comparing.compare([a])


def test_the_command_compares(tmp_path: Path, monkeypatch, capsys) -> None:
    a = save(tmp_path / "a.json", {("toy_add_sum", i): [i % 2 == 0] for i in range(3)})
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "compare", a, a, a])
    config.run(evaluate.main)
    printed = capsys.readouterr().out
    assert "B - A" in printed and "C - A" in printed and "+0.000 +-0.000" in printed


# -- whole evaluations -------------------------------------------------------------------------------------


def test_same_answers_with_other_slots(tiny) -> None:
    asked = evaluation.questions(names("toy", "test"), 5)
    options = {"max_tokens": 24, "samples": 2, "protocol": "code"}
    with Sandbox(require="none") as sandbox:
        runs = [answers(tiny, asked, sandbox, slots=slots, **options) for slots in (2, 10)]
    assert [e.tokens for e in runs[0]] == [e.tokens for e in runs[1]]
    assert [e.problem for e in runs[0]] == [p for p in asked for _ in range(2)]


def test_the_script_writes_its_table_once(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "table.json"
    argv = ["evaluate.py", "--tasks", "facts", "--questions", "3", "--max-tokens", "8", "--sandbox", "none"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(out)])
    config.run(evaluate.main)
    found = json.loads(out.read_text())
    assert found["overall"]["micro"]["episodes"] == 3 and len(found["questions"]) == 3
    assert found["config"]["temperature"] == 0.6  # as in the paper, and written down
    printed = capsys.readouterr().out
    assert "avg@1" in printed and "code_ratio" in printed and "temperature 0.6" in printed
    with pytest.raises(SystemExit) as leave:
        config.run(evaluate.main)
    assert leave.value.code == 2 and "exists" in capsys.readouterr().err


# -- the demo --------------------------------------------------------------------------------------


def test_the_demos_questions_are_new_and_the_check_can_fail(tmp_path: Path) -> None:
    cfg = demo.Config(out=str(tmp_path), base_examples=300, grpo_steps=2, sandbox="none")
    with Sandbox(require="none", quiet=True) as sandbox:
        demo.write_data(cfg, tmp_path, sandbox)
    asked = demo.evaluation_questions()
    assert sum(map(len, asked.values())) == 692
    assert {p.task for p in asked["seen_tasks"]} == set(names("toy", "train"))
    assert {p.task for p in asked["unseen_tasks"]} == set(names("toy", "test"))
    assert "none of the" in demo.check_disjoint(cfg, tmp_path, asked)
    leaked = {**asked, "unseen_tasks": asked["unseen_tasks"][:-1]}
    line = json.loads((tmp_path / "sft.jsonl").read_text().splitlines()[0])
    question = line["messages"][0]["content"]
    leaked["unseen_tasks"].append(Problem(line["task"], 0, question, 0))
    with pytest.raises(RuntimeError, match="not clean"):
        demo.check_disjoint(cfg, tmp_path, leaked)


def test_the_mixture_has_every_habit_in_its_share() -> None:
    drafts = list(mixture(4000, seed=0))
    assert abs(sum(d.protocol == "text" for d in drafts) / 4000 - toy.MIXTURE["text"]) < 0.02
    assert abs(sum(d.problem.task.startswith("fact_") for d in drafts) / 4000 - toy.MIXTURE["fact"]) < 0.02
    assert abs(sum(len(d.programs) == 2 for d in drafts) / 4000 - toy.MIXTURE["repair"]) < 0.02
    assert sum(toy.MIXTURE.values()) == pytest.approx(1.0)
    asked = {d.problem.task for d in drafts}
    assert asked >= set(names("facts")) and not asked & set(names("toy", "test"))
    assert asked - set(names("toy", "train") + names("facts")) <= toy.OTHERS.keys()


def test_the_base_mistakes_operations_most_of_the_time() -> None:
    """The share of programs with a mistaken line, of those whose task has one operation to mistake."""
    task, rng = toy.Composition((toy.MIDDLE[0], toy.CLOSING[0])), random.Random(0)  # add, mean
    problem = task.problem(SFT_START)
    written = Counter(task.believed(problem, rng) for _ in range(2000))
    right = task.solution(problem)
    assert abs(1 - written[right] / 2000 - toy.MISTAKEN) < 0.03
    assert set(written) == {right, right.replace("sum(x) // len(x)", "sum(x) / len(x)")}


def test_two_episodes_of_a_question_stand_side_by_side(capsys) -> None:
    tokenizer = load_model("tiny", World(), "auto")[1]

    def episode(text: str, correct: bool) -> Episode:
        e = Episode(toy.TASKS["toy_add_sum"].problem(0), 0, correct=correct, reward=float(correct))
        e.append(tokenizer.encode("the prompt"), Source.PROMPT)
        e.append(tokenizer.encode(text), Source.POLICY)
        e.append(tokenizer.encode("\n7\n"), Source.TOOL)
        return e

    before, after = episode("a", False), episode("one two three four five six", True)
    assert printing.changed([before], [after]) == []  # no program was run, so that none is shown
    printing.show([(before, after)], tokenizer, width=22)
    printed = capsys.readouterr().out
    assert "the prompt" not in printed
    assert [line.split(" | ", 1) for line in printed.splitlines()[3:]] == [
        ["a".ljust(22), "one two three four"],
        ["| 7".ljust(22), "five six"],
        ["=> wrong, reward 0.00".ljust(22), "| 7"],
        [" " * 22, "=> right, reward 1.00"],
    ]


def test_plot_draws_and_refuses_an_empty_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UsageError, match="no metrics"):
        plot.draw([run], tmp_path / "x.png")
    lines = [{"step": s, "reward": s / 3, "accuracy": 0.5, "entropy": 0.1} for s in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = plot.draw([run], tmp_path / "deep" / "x.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_file_is_asked_for_no_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "three.jsonl"
    path.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(3)))
    asked = evaluation.questions([str(path), "game24"], 10)
    assert [p.question for p in asked if p.task == str(path)] == ["q0", "q1", "q2"] and len(asked) == 10
    assert len(evaluation.questions([str(path)], 10)) == 3
