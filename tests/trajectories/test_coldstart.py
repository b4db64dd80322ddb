"""Where trajectories come from: shapes really executed, every rewriter's fault named, nothing lost to a kill.

The oracle of a stored result is the sandbox, of an answer its task's grader; the faults are put in by hand.
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from server import Server, chat

import coldstart
from episode import Call, Episode
from plumbing.config import UsageError
from plumbing.journal import Journal
from plumbing.ranks import World
from rollout import Environment
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, RL_START, SFT_START, Problem, get, names, output
from tasks.blocks import split_code
from tasks.checks import CHECKS, check, given
from tokenizer import Source
from training.interpreter import open_sandbox
from training.loading import load_model
from training.options import SandboxOptions
from trajectories import checks, questions, shapes, sources, teachers
from trajectories.encoding import encode
from trajectories.endpoint import Endpoint
from trajectories.faults import REASONS, Fault
from trajectories.habits import mixture
from trajectories.halves import can_be_copied, halves
from trajectories.ledger import Ledger
from trajectories.programs import Draft, Step, carry_out, from_programs
from trajectories.records import trajectory
from trajectories.shapes import SHAPES, WORDS
from trajectories.slips import LOUD, SILENT, slips
from trajectories.sources import from_episode

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
TASKS = ("game24", "letters", "eight_queens", "number_multiply", "word_sorting", "web_of_lies")


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(
        SandboxOptions(sandbox="none"), quiet=True
    ) as opened:  # with sympy imported once, where it is installed
        yield opened


def made(sandbox: Sandbox, task: str, shape: str, seed: int = 0, index: int = SFT_START) -> tuple:
    """(trajectory, fault) of a question in a given shape."""
    problem, rng = get(task).problem(index), random.Random(seed)
    before, shapes.SHAPES = SHAPES, {getattr(shapes, shape): 1.0}
    try:
        draft = shapes.draft(problem, float(shape != "solve"), rng, "r1ci")
    finally:
        shapes.SHAPES = before
    ((_, outcome),) = carry_out([draft], sandbox)
    return (None, outcome) if isinstance(outcome, Fault) else (outcome, None)


# -- shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, task, right",  # right: where the reference program stands
    [
        ("solve", "letters", [0]),
        ("repair", "statistical_counting", [1]),
        ("give_up", "web_of_lies", []),
        ("verify", "letters", [0]),
        ("two_steps", "statistical_counting", []),
        ("correct", "letters", [2]),
    ],
)
def test_every_shape_runs_what_its_words_say(
    sandbox: Sandbox, shape: str, task: str, right: list[int]
) -> None:
    """Each result is the sandbox's own: a slip fails, a check prints True or shows what is wrong. The answer
    is what the right program printed. It follows the last result in one short line."""
    tried = (made(sandbox, task, shape, seed) for seed in range(40))  # a slip may hit what is not reached
    record = next(record for record, _ in tried if record)
    messages = record["messages"]
    said, told = messages[1::2], [m["content"] for m in messages[2::2]]
    programs = [next(split_code(m["content"], PROTOCOLS["r1ci"])).program for m in said[:-1]]
    assert record["turns"] == len(said) == len(told) + 1
    reference = get(task).solution(get(task).problem(SFT_START)).strip()
    assert [i for i, program in enumerate(programs) if program == reference] == right
    ran = [sandbox.run(program) for program in programs]
    assert [output(r) for r in ran] == told
    failing = {"repair": [0], "give_up": list(range(len(ran)))}.get(shape, [])
    assert [r.status for r in ran] == ["error" if i in failing else "ok" for i in range(len(ran))]
    mistakes = [0] if shape == "correct" else failing
    assert [i for i, m in enumerate(said) if m.get("weight") == 0] == mistakes, "read, not trained"
    if shape == "verify":
        assert set(told[1].split()) == {"True"}
    if shape == "correct":
        assert "False" in told[1] and told[0] != told[2]
    if shape == "two_steps":
        assert told[0].strip() in programs[1], "the second program has the first one's value"
    last, answer = messages[-1]["content"], told[0 if shape == "verify" else -1].strip()
    if shape == "give_up":
        assert len(set(programs)) == 1 and len(set(told)) == 1
        answer = get(task).problem(SFT_START).answer
    assert last.endswith(f"<<<{answer}>>>")
    assert len(last.split("<<<")[0]) < 60


def test_a_slip_or_a_check_that_belies_its_words_is_dropped(sandbox: Sandbox) -> None:
    """A slip that does not fail, a check that does not hold, a check that holds where a slip should show, and
    a value that cannot be copied."""
    problem, rng = get("letters").problem(SFT_START), random.Random(0)
    program = get("letters").solution(problem).strip()
    failing = shapes.repair(problem, program, rng).steps[0]
    fails, holds = (
        shapes.correct(problem, program, rng).steps[1],
        shapes.verify(problem, program, rng).steps[1],
    )
    drafts = {
        "unharmed": [Step("", program, failing.accept), ("", program)],
        "another error": [Step("", "raise OSError", failing.accept), ("", program)],
        "a check fails": [("", "print('Count: 1, Positions: [99]')"), holds],
        "a check holds": [("", program), fails, ("", program)],
    }
    for steps in drafts.values():
        ((_, fault),) = carry_out([Draft(problem, steps, lambda o: "<<<1>>>")], sandbox)
        assert fault.reason == "shape"


SLIPPED = """\
import math

sizes = [3, 1, 4]
count = {}
for i in range(len(sizes)):
    if sizes[i] == 3:
        count[sizes[i]] = count.get(sizes[i], 0) + 1
    count[i] = math.gcd(*sizes) // 1
total = [*sizes, sizes[-1]]
total.append(len(sizes))
for place, size in enumerate(sorted(sizes)):
    total[place] += int(str(size)) * float("1.5")
print(f"Sum: {sum(sizes)}", ", ".join(map(str, total)), [0, 1][count[0] // 1], "ok", *total)"""


def test_every_loud_slip_raises_its_error(sandbox: Sandbox) -> None:
    """One change each: the other lines stay as they were. Each rule fails as it says at some place."""
    found = slips(SLIPPED, LOUD)
    assert sandbox.run(SLIPPED).status == "ok" and set(found) == set(LOUD)
    for rule, made in found.items():
        lines = [difflib.ndiff(SLIPPED.split("\n"), s.program.split("\n")) for s in made]
        assert all(sum(line[0] == "-" for line in diff) <= 3 for diff in lines), rule
        errors = {
            r.stderr.strip().split("\n")[-1].split(":")[0] for r in sandbox.map([s.program for s in made])
        }
        assert errors & set(made[0].errors), (rule, errors)
        assert all(s.why.endswith(".") and s.why.count("\n") == 0 for s in made)


@pytest.mark.parametrize(
    "rule, right, wrong",
    [
        ("wrong_comparison", "print(3 < 3)", "print(3 <= 3)"),
        ("ends_too_early", "print(list(range(1, n + 1)))", "print(list(range(1, n)))"),
        ("ends_too_early", "print(list(range(n)))", "print(list(range(n - 1)))"),
        ("counts_from_zero", "print(list(enumerate('ab', start=1)))", "print(list(enumerate('ab')))"),
        ("other_function", "print(max(words))", "print(min(words))"),
        ("forgotten_argument", "print(sorted(words, key=len))", "print(sorted(words))"),
        ("forgotten_method", "print(words[0].lower())", "print(words[0])"),
        ("wrong_sign", "print(n - 2)", "print(n + 2)"),
        ("not_reversed", "print(words[::-1])", "print(words)"),
        ("counted_twice", "print(len(set('aa')))", "print(len('aa'))"),
        ("wrong_connective", "print([w for w in words if w and n])", "print([w for w in words if w or n])"),
    ],
)
def test_a_silent_slip_changes_one_place(rule: str, right: str, wrong: str) -> None:
    found = {r.__name__: [s.program for s in made] for r, made in slips(right, SILENT).items()}
    assert wrong in found[rule]


def test_every_silent_rule_has_a_case() -> None:
    marks = test_a_silent_slip_changes_one_place.pytestmark[0].args[1]
    assert {case[0] for case in marks} == {rule.__name__ for rule in SILENT}


def test_a_program_is_divided_where_a_value_goes_over(sandbox: Sandbox) -> None:
    """By hand: the first half has `total` only; the second has its import, and not the numbers."""
    program = "import math\n\nnumbers = [3, 4]\nnames = '0123456789'\n"
    program += (
        "total = sum(n * n for n in numbers)\nroot = max(1, math.isqrt(total))\nprint(names.index(str(root)))"
    )
    found = {(h := halves(program, random.Random(i))).name: h for i in range(20)}
    assert set(found) == {"total", "root"} and found["total"].first == (
        "numbers = [3, 4]\ntotal = sum(n * n for n in numbers)\nprint(total)"
    )
    second = found["total"].then(sandbox.run(found["total"].first).stdout)
    assert "total = 25" in second and "numbers" not in second and second.startswith("import math\n")
    assert sandbox.run(second).stdout == sandbox.run(program).stdout == "5\n"


@pytest.mark.parametrize(
    "program",
    [
        "numbers = [3, 4]\nn = len(numbers)\nprint(sum(numbers) / n)",
        "words = ['b', 'a']\nordered = sorted(words)\nprint(', '.join(ordered))",
        "seen = set(range(3))\nprint(max(seen))",
        "a, b = divmod(sum([7]), 2)\nprint(max(a, b))",
        "print(sum([1]))\nn = sum([2])\nprint(max(n, 2))",
    ],
)
def test_no_step_that_only_looks_or_writes(program: str) -> None:
    """A length, a list joined to text, a set, two values, and a print before the end."""
    assert halves(program, random.Random(0)) is None


@pytest.mark.parametrize(
    "printed, copied",
    [("5", True), ("[1, 'a']", True), ("the plum jam", True), ("{'a': 1}", True)]
    + [("{1, 2}", False), ("set()", False), ("[]", False), ("1\n2", False), ("<object at 0x1>", False)]
    + [("9" * 121, False), ("deque([1])", False)],
)
def test_which_values_are_copied(printed: str, copied: bool) -> None:
    assert can_be_copied(printed + "\n") == copied


@pytest.mark.parametrize("name", sorted(n for n in names(split="train") if not get(n).missing))
def test_a_program_imports_only_what_it_uses(name: str) -> None:
    """The reference program of each training task, on twenty questions, and its check."""
    task = get(name)
    for index in range(SFT_START, SFT_START + 20):
        program = task.solution(task.problem(index))
        for text in filter(None, (program, program and check(task.problem(index), program, "1"))):
            nodes = list(ast.walk(ast.parse(text)))
            imports = [
                alias for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names
            ]
            used = {n.id for n in nodes if isinstance(n, ast.Name)}
            assert {(a.asname or a.name).split(".")[0] for a in imports} <= used, text


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_holds_for_the_right_answer_and_not_for_anothers(sandbox: Sandbox, name: str) -> None:
    task = get(name)
    if task.missing:
        pytest.skip(f"{name}: {task.missing}")
    problems = [task.problem(SFT_START + i) for i in range(4)]
    programs = [task.solution(p) for p in problems]
    answers = [r.stdout for r in sandbox.map(programs)]
    codes = [
        check(p, program, answer)
        for i, (p, program) in enumerate(zip(problems, programs, strict=True))
        for answer in (answers[i], answers[(i + 1) % 4])
    ]
    holds = [r.status == "ok" and set(r.stdout.split()) == {"True"} for r in sandbox.map(codes)]
    for i, problem in enumerate(problems):
        assert holds[2 * i] or not task.grade(problem, answers[i].strip()).correct
        assert not holds[2 * i + 1] or task.grade(problem, answers[(i + 1) % 4].strip()).correct
    assert any(holds[::2])


def test_what_is_given_is_read_from_the_head_of_a_program_only() -> None:
    program = "import math\nnumbers = [3, 1]\ntext = 'abcd'\ntotal = sum(numbers)\nlate = [9]"
    assert given(program) == {"numbers": "numbers = [3, 1]", "text": "text = 'abcd'"}
    assert given("print(1)") == {}


def test_words_alone_where_a_program_is_no_help(sandbox: Sandbox) -> None:
    """aiw by hand: her brother's sisters are her sisters and she herself."""
    pytest.importorskip("reasoning_gym", reason="the package reasoning-gym (extra) is not installed")
    for name in WORDS:
        problems = [get(name).problem(SFT_START + i) for i in range(40)]
        found = [shapes.draft(p, 0.0, random.Random(i), "r1ci") for i, p in enumerate(problems)]
        alone = [d for d in found if d and not d.programs]
        records = [outcome for _, outcome in carry_out(alone, sandbox)]
        assert len(records) > 5 and not any(isinstance(r, Fault) for r in records), "right, every one"
        assert all(len(r["messages"][1]["content"]) > 40 for r in records), "reasoned, not only answered"


# -- quotas, filters, the file ------------------------------------------------------------------------


def line(index: int, turns: int, text: str = "") -> dict:
    return {"index": index, "turns": turns, "messages": [{"content": f"{index} {turns} {text}"}]}


def test_quotas_by_hand() -> None:
    """Ten of a task wanted, six of them of several programs; a question's second answer comes last."""
    ledger = Ledger()
    several = [line(i, 3) for i in range(8)]
    single = [line(i, 2) for i in range(10, 30)]
    for record in [line(0, 3, "again"), *several, *single, line(3, 3)]:
        ledger.add("a", record)
    for record in [line(0, 2), line(1, 3), line(1, 3, "more")]:
        ledger.add("b", record)
    ledger.add("b", Fault("answer"))
    ledger.choose(10, 0.6)
    kept = ledger.kept["a"]
    assert len(kept) == 10 and sum(r["turns"] > 2 for r in kept) == 6
    assert len({r["index"] for r in kept}) == 10, "all different questions"
    assert dict(ledger.dropped["a"]) == {"repeated": 1, "quota": 19}
    assert len(ledger.kept["b"]) == 3, "fewer than asked for: all"
    report = "\n".join(ledger.report())
    assert "answer 1" in report and re.search(r"all\s+13\s+8", report)
    ledger.choose(None, 0.0)
    assert len(ledger.kept["a"]) == 10, "without a number no quota"
    ledger.choose(4, 0.0)
    assert sum(r["turns"] > 2 for r in ledger.kept["a"]) == 0


def test_no_question_of_the_evaluation_and_none_twice() -> None:
    """prime_factorization asks the same numbers again and again."""
    pytest.importorskip("reasoning_gym", reason="the package reasoning-gym (extra) is not installed")
    asked = {get("prime_factorization").problem(i).question for i in range(500)}
    stream = questions.Questions("prime_factorization", questions.evaluated("prime_factorization", 500))
    found = stream.take(100, 1000)
    assert len({p.question for p in found}) == len(found) == 100
    assert not asked & {p.question for p in found}
    assert {f.reason for f in stream.faults} == {"evaluation", "repeated"}
    assert all(SFT_START <= p.index < RL_START for p in found)
    assert questions.evaluated("toy_add_sum", 500) == set(), "its ranges share no question by construction"


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["coldstart.py", *words])
    coldstart.main()


def test_the_command_makes_a_file_that_its_check_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = str(tmp_path / "made.jsonl")
    words = ("--tasks", ",".join(TASKS), "--train-on-test-tasks", "--per-task", "5", "--evaluation", "50")
    run_main(monkeypatch, *words, "--out", path, "--sandbox", "none")
    records = [json.loads(text) for text in Path(path).read_text().splitlines()]
    counts = {name: sum(r["task"] == name for r in records) for name in TASKS}
    assert set(counts.values()) == {5} and {r["source"] for r in records} == {"programs"}
    assert sum(r["turns"] > 2 for r in records) >= 0.3 * len(records)
    assert re.search(rf"all\s+{len(records)} ", capsys.readouterr().out)
    run_main(monkeypatch, "check", path, "--sandbox", "none")
    assert "30 trajectories, 0 with a fault" in capsys.readouterr().out
    with pytest.raises(UsageError, match="exists"):
        run_main(monkeypatch, "--out", path)


def test_the_check_names_line_and_reason_of_every_fault(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    good, _ = made(sandbox, "letters", "verify")

    def changed(number: int, old: str, new: str, **more) -> dict:
        messages = [dict(m) for m in good["messages"]]
        assert old in messages[number]["content"]
        messages[number]["content"] = messages[number]["content"].replace(old, new)
        return good | {"messages": messages} | more

    answer = re.search(r"<<<(.*)>>>", good["messages"][-1]["content"])[1]
    other = get("letters").problem(5)
    faults = {
        "result": changed(4, "True", "Yes"),
        "answer": changed(5, answer, "Count: 99, Positions: []"),
        "unanswered": changed(5, f"<<<{answer}>>>", answer),
        "markup": changed(1, "```python", "```js"),
        "range": good | {"index": 5, "messages": [{"role": "user", "content": other.question}]},
        "question": changed(0, "How often", "how often"),
    }
    marks = [changed(3, "\n```", ""), changed(5, ">>>", ">>"), changed(5, "<<<", "```python\n1\n```<<<")]
    marks += [changed(5, "<<<", "Code Execution Results:\n3\n\n<<<"), {"messages": 3}]
    path = tmp_path / "faults.jsonl"
    lines = [good, *faults.values(), *marks, good]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    with pytest.raises(SystemExit) as left:
        run_main(monkeypatch, "check", str(path), "--sandbox", "none")
    assert left.value.code == 1
    out = capsys.readouterr().out
    told = dict(re.findall(r"line (\d+): .*?: (\w[\w ]*?):", out.replace(f"{path}, ", "")))
    expected = [*faults, *["markup"] * len(marks), "repeated", "markup"]
    for number, reason in enumerate(expected, 2):
        assert re.search(rf"line {number}: .*\b{reason}: ", out), (number, reason, out)
    assert "line 1:" not in out and told
    assert f"{len(lines) + 1} trajectories, {len(expected)} with a fault" in out


def hand_made(
    final: str, result: str = "7\n", protocol: str = "r1ci", first: str = "By code:\n", **more
) -> dict:
    """A question of toy_add_sum with one program that prints `result`."""
    problem = get("toy_add_sum").problem(SFT_START)
    program = f"```python\nprint({result.strip()!r})\n```"
    messages = [("user", problem.question), ("assistant", first + program), ("tool", result)]
    messages.append(("assistant", final))
    answer = str(problem.answer)
    messages = [{"role": role, "content": text.replace("ANSWER", answer)} for role, text in messages]
    return trajectory(problem, messages, "hand", protocol) | more


def fault_of(record: dict, sandbox: Sandbox) -> str | None:
    (fault,) = checks.verify([record], [get("toy_add_sum").problem(SFT_START)], sandbox, 5.0)
    return fault and fault.reason


def test_an_altered_middle_of_a_long_result_is_found(sandbox: Sandbox) -> None:
    """Beyond 1,000 characters the model is shown head and tail only; the file has all of it."""
    good = hand_made("<<<ANSWER>>>", "1" * 3000)
    assert fault_of(good, sandbox) is None
    good["messages"][2]["content"] = "1" * 1500 + "2" + "1" * 1499
    assert fault_of(good, sandbox) == "result"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (hand_made("So:\n```\n1 + 6\n```\n<<<ANSWER>>>"), None),
        (hand_made("```\n<<<ANSWER>>>"), "markup"),
        (hand_made("```py\nprint(8)\n```\n<<<ANSWER>>>"), "markup"),
        (hand_made("``` Python\nprint(8)\n```\n<<<ANSWER>>>"), "markup"),
        (hand_made("code execution results:\n8\n<<<ANSWER>>>"), "markup"),
        (hand_made("<<<ANSWER>>>", first="Code Execution results: 8\n"), "markup"),
        (hand_made("<<<ANSWER>>>", first="It may be <<<8>>>.\n"), None),
        (hand_made("<<<ANSWER>>>", first="It may be <<<8.\n"), "markup"),
        (hand_made("<<<ANSWER>>>", "<<<\n"), None),
        (hand_made("done.", first="It is <<<ANSWER>>>.\n"), "unanswered"),
        (hand_made("<<<ANSWER>>>", turns=3), "markup"),
        (hand_made("<<<ANSWER>>>", turns=None), "markup"),
        (hand_made("<<<ANSWER>>>", protocol=[]), "markup"),
    ],
)
def test_marks_turns_and_protocol_of_a_trace(record: dict, reason: str | None, sandbox: Sandbox) -> None:
    """A mark in a program is no mark of the answer; one in any turn's words needs its partner."""
    assert fault_of(record, sandbox) == reason


def test_only_a_protocol_that_asks_twice_has_a_second_question(sandbox: Sandbox) -> None:
    for protocol, asked, reason in (("guided", 1, None), ("guided", 2, "markup"), ("r1ci", 1, "markup")):
        record = hand_made("<<<ANSWER>>>", protocol=protocol)
        again = [{"role": "user", "content": "Sure?"}, record["messages"][-1]]
        record["messages"] += again * asked
        record["turns"] += asked
        assert fault_of(record, sandbox) == reason, (protocol, asked)


def test_the_check_goes_on_after_an_unknown_task_and_refuses_an_empty_file(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    good, path = hand_made("<<<ANSWER>>>"), tmp_path / "few.jsonl"
    lines = [good | {"task": "toy_ad_sum"}, good | {"task": "none.jsonl"}, good | {"protocol": []}]
    lines.append(hand_made("So <<<ANSWER>>>"))
    path.write_text("\n".join(map(json.dumps, lines)))
    found = [fault and str(fault) for _, fault, _ in checks.check(str(path), sandbox, 5.0)]
    assert found[3] is None and "unknown task toy_ad_sum" in found[0] and "no such file" in found[1]
    assert "expected an object with a protocol" in found[2]
    path.write_text("")
    with pytest.raises(UsageError, match="no trajectories in it"):
        list(checks.check(str(path), sandbox, 5.0))


def test_results_that_depend_on_the_clock_are_not_kept(sandbox: Sandbox) -> None:
    record, _ = made(sandbox, "number_multiply", "solve")
    problem = get("number_multiply").problem(SFT_START)

    def result(status: str, cpu: float) -> Result:
        return Result(status, record["messages"][2]["content"], "", 0, None, 9.0, cpu, 1.0, False)

    assert checks.judge(record, problem, [result("ok", 0.1)], 5.0) is None, "a busy machine is no fault"
    assert checks.judge(record, problem, [result("ok", 2.6)], 5.0).reason == "slow"
    assert checks.judge(record, problem, [result("timeout", 0.1)], 5.0).reason == "slow"
    assert checks.judge(record, problem, [result("sandbox_error", 0.1)], 5.0).reason == "sandbox"


# -- rewriting ---------------------------------------------------------------------------------------


QUESTION = {"question": "What is 12 * 12 + 1?", "answer": "145", "solution": "12 * 12 is 144, and 1 is 145."}
GOOD = {
    "retool": "I compute it.\n<code>\n```python\nprint(12 * 12 + 1)\n```\n</code>\n<interpreter>\n145\n"
    "</interpreter>\n\nSo it is:\n<answer>\n\\boxed{145}\n</answer>",
    "r1ci": "I compute it.\n```python\nprint(12 * 12 + 1)\n```\nCode Execution Results:\n145\n\n<<<145>>>",
}
MISTAKES = {  # protocol -> what the teacher changes -> the reason
    "retool": {
        ("145\n</interpreter>", "146\n</interpreter>"): "result",
        ("print(12 * 12 + 1)", "print(12 * 12 + 1"): "syntax",
        ("\n</code>", ""): "markup",
        ("</interpreter>", ""): "markup",
        ("<interpreter>\n145\n</interpreter>", ""): "markup",
        ("<code>\n```python", "```python"): "markup",
        ("\n```\n</code>", "\n</code>"): "markup",
        ("So it is:", "So <code>\nprint(1)\n</code> it is"): "markup",
        ("So it is:", "So it is: </code>"): "markup",
        ("</answer>", ""): "markup",
        ("\\boxed{145}", "\\boxed{144}"): "answer",
        ("\\boxed{145}", "145"): "unanswered",
        (GOOD["retool"][: GOOD["retool"].index("<answer>")], "It is 145.\n"): "no code",
    },
    "r1ci": {
        ("Results:\n145", "Results:\n14"): "result",
        ("print(12 * 12 + 1)", "print(12 * 12 +)"): "syntax",
        ("\n```\n", "\n"): "markup",
        ("```python", "```"): "markup",
        ("Code Execution Results:\n145\n\n", ""): "markup",
        (">>>", ""): "markup",
        ("<<<145>>>", "<<<146>>>"): "answer",
        ("<<<145>>>", "145"): "unanswered",
        (GOOD["r1ci"][: GOOD["r1ci"].index("<<<")], ""): "no code",
    },
}


@pytest.mark.parametrize("protocol", MISTAKES)
def test_each_mistake_of_a_rewriter_is_rejected_with_its_reason(
    sandbox: Sandbox, tmp_path: Path, protocol: str
) -> None:
    """A scripted teacher makes every mistake once, on copies of one question; first and last it is right."""
    good, mistakes = GOOD[protocol], MISTAKES[protocol]
    for old, _ in mistakes:
        assert old in good
    texts = [good, *(good.replace(old, new) for old, new in mistakes), good]
    path = tmp_path / "solutions.jsonl"
    path.write_text((json.dumps(QUESTION) + "\n") * len(texts))
    asked = []

    def scripted(conversations: list[list[dict]]) -> list[str]:
        asked.extend(conversations)
        return texts

    found = teachers.rewrite(scripted, teachers.read_solutions(str(path)), protocol, sandbox)
    assert [f.reason for f in found[1:-1]] == list(mistakes.values())
    for kept in (found[0], found[-1]):
        assert [m["role"] for m in kept["messages"]] == ["user", "assistant", "tool", "assistant"]
        assert kept["messages"][2]["content"].strip() == "145" and kept["source"] == "rewrite"
    assert all(QUESTION["solution"] in c[1]["content"] for c in asked)
    assert {f.reason for f in found[1:-1]} <= set(REASONS)


def test_lines_that_are_no_solutions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    for text, said in (
        ('{"question": "?", "answer": "1"}', '"solution"'),
        ('{"task": "game24", "index": 3, "solution": "x"}', "index from 10000"),
        ('{"task": "blocksworld", "index": 10000, "solution": "x"}', "held out"),
        ("[", "JSON"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(UsageError, match=said):
            teachers.read_solutions(str(path))
    path.write_text("\n\n" + json.dumps(QUESTION) + "\n\n[\n")
    with pytest.raises(UsageError, match="line 5: "):
        teachers.read_solutions(str(path))
    path.write_text('{"task": "game24", "index": 10000, "solution": "by trying"}\n')
    ((problem, solution),) = teachers.read_solutions(str(path))
    assert (problem, solution) == (get("game24").problem(10000), "by trying")
    path = tmp_path / "problems.jsonl"
    path.write_text('\n{"problem": "1 + 1?", "solution": "two", "answer": "2"}\n')
    ((problem, solution),) = teachers.read_solutions(str(path))
    assert (problem.question, problem.answer, solution) == ("1 + 1?", "2", "two")


# -- a model of ours ---------------------------------------------------------------------------------


def test_a_sampled_episode_becomes_messages_by_its_tags() -> None:
    """Who wrote what is told by the tags, not by the text: the model's own "Code Execution Results" stays
    its own, and is a fault."""
    _, tokenizer = load_model("tiny", World("cpu"), "float32")
    problem = get("toy_add_sum").problem(SFT_START)
    episode = Episode(problem, 0, finish="stop")
    shape = PROTOCOLS["r1ci"]
    result = Result("ok", "7\n", "", 0, None, 0.1, 0.1, 1.0, False)
    episode.append(tokenizer.chat("Alternate.", problem.question), Source.PROMPT)
    episode.append(tokenizer.encode("With Python:\n```python\nprint(7)\n```"), Source.POLICY)
    episode.calls.append(Call("print(7)", result, 0))
    episode.append(tokenizer.encode(shape.wrap("7\n")), Source.TOOL)
    episode.append([*tokenizer.encode("It is <<<7>>>"), tokenizer.stop_ids[0]], Source.POLICY)
    environment = Environment(tokenizer, shape, None, system="Alternate.")
    record = from_episode(episode, environment)
    assert encode(record, tokenizer, "r1ci").tokens == episode.tokens
    asked = from_episode(episode, Environment(tokenizer, shape, None, template="Now {question}"))
    assert asked["prompt"] == "Now {question}"
    assert [(m["role"], m["content"]) for m in record["messages"]] == [
        ("system", "Alternate."),
        ("user", problem.question),
        ("assistant", "With Python:\n```python\nprint(7)\n```"),
        ("tool", "7\n"),
        ("assistant", "It is <<<7>>>"),
    ]
    assert checks.parse(record)[2] == ["print(7)"] and record["turns"] == 2
    for finish, reason in (("length", "unanswered"), ("calls", "limit"), ("sandbox", "sandbox")):
        episode.finish = finish
        assert from_episode(episode, environment)[0] == reason


def test_each_style_has_its_protocol_and_its_prompt(tmp_path: Path) -> None:
    """--system-file and --prompt-file are for the free style alone; without that style they are refused. All
    styles have the answer format of --protocol."""
    head = tmp_path / "head.txt"
    head.write_text("Be brief.\n")
    cfg = coldstart.Config(source="model", model="m", protocol="retool", system_file=str(head))
    found = sources.environments(cfg, None)
    protocols = {name: e.protocol.name for name, e in found.items()}
    assert protocols == {"free": "retool", "text": "cot", "code": "retool", "alternating": "retool"}
    assert found["free"].system == "Be brief." and found["text"].system is found["code"].system is None
    for name in ("code", "alternating"):
        assert "<code>" in found[name].template and "\\boxed{answer}" in found[name].template
        assert found[name].template.endswith("{question}")
    assert all(e.limits.max_tokens == 1024 and e.skip_ungraded for e in found.values())
    for options in ({"source": "programs"}, {"styles": "text,code"}):
        with pytest.raises(UsageError, match="--system-file: only the style free"):
            coldstart.make(dataclasses.replace(cfg, out=str(tmp_path / "out.jsonl"), **options), World("cpu"))


def test_the_model_source_keeps_nothing_of_a_model_that_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ("--source", "model", "--model", "tiny", "--tasks", "toy_add_sum", "--per-task", "2")
    words += ("--max-tokens", "12", "--sandbox", "none", "--out", str(tmp_path / "out.jsonl"))
    with pytest.raises(UsageError, match="no trajectory was kept"):
        run_main(monkeypatch, *words)
    assert re.search(r"all\s+0\s+0\s+unanswered 8", capsys.readouterr().out), "two questions, four styles"
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match="did you mean text"):
        run_main(monkeypatch, *words, "--styles", "txt")


# -- a teacher behind HTTP -----------------------------------------------------------------------------


def adds_up(handler) -> None:
    """Sums the numbers of a toy question by a program; every tenth answer is wrong, and now and then it is
    too busy, or breaks off."""
    turn = len(handler.server.seen)
    if turn % 9 == 4:
        handler.answer(429, b"{}", {"Retry-After": "0"})
        return
    if turn % 50 == 25:
        handler.answer(200, b'{"choices": [')
        return
    last = handler.body["messages"][-1]["content"]
    if last.startswith("Code Execution Results:"):
        handler.answer(200, chat(f"<<<{last.split()[-1]}>>>"))
        return
    time.sleep(0.02)
    numbers, k = last[last.index("[") : last.index("]") + 1], re.search(r"Add (\d+)", last)[1]
    slip = 1 if handler.server.count(last) % 10 == 9 else 0
    handler.answer(200, chat(f"By code:\n```python\nprint(sum(v + {k} for v in {numbers}) + {slip})\n```"))


class Counting(Server):
    """How often each question was asked for the first time in a conversation."""

    def __init__(self, script: list):
        super().__init__(script)
        self.asked: dict[str, int] = {}

    def count(self, question: str) -> int:
        with self.lock:
            self.asked[question] = self.asked.get(question, 0) + 1
            return list(self.asked).index(question)


def command(url: str, out: Path, questions: int, slots: int) -> list[str]:
    words = ["--source", "endpoint", "--url", url, "--model", "adder", "--tasks", "toy_add_sum"]
    words += ["--styles", "free", "--per-task", str(questions), "--slots", str(slots), "--sandbox", "none"]
    return [sys.executable, str(ROOT / "coldstart.py"), *words, "--out", str(out)]


KILLS = int(os.environ.get("ABACUS_KILLS", 1))  # ten for the measurement in docs/coldstart.md


def test_a_killed_run_loses_nothing_and_asks_nothing_twice(tmp_path: Path) -> None:
    """kill -9 while it asks, then the same command: every question is in the file once or dropped once for
    its reason, and only those in flight at a kill were asked again."""
    server, slots, questions = Counting([adds_up]), 4, 40 * (KILLS + 1)
    out, rng = tmp_path / "out.jsonl", random.Random(KILLS)
    part = Path(f"{out}.part")
    for kill in range(KILLS):
        run = subprocess.Popen(command(server.url, out, questions, slots), stderr=subprocess.PIPE)
        goal = (kill + rng.uniform(0.3, 1.0)) * 40
        while run.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") > goal):
            time.sleep(0.01)
        assert run.poll() is None, run.stderr.read().decode()
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        if kill == 0:  # the kill may have torn the last line
            with open(part, "ab") as f:
                f.write(b'["toy_add_sum 1')
    done = subprocess.run(command(server.url, out, questions, slots), capture_output=True, text=True)
    server.ended.set()
    server.shutdown()
    assert done.returncode == 0, done.stderr
    records = [json.loads(text) for text in out.read_text().splitlines()]
    indices = [r["index"] for r in records]
    wrong = {get("toy_add_sum").problem(SFT_START + i).question for i in range(questions)}
    wrong -= {r["messages"][0]["content"] for r in records}
    assert len(indices) == len(set(indices)) and len(records) + len(wrong) == questions
    assert len(server.asked) == questions, "every question was asked"
    assert len(wrong) >= questions // 20 and f"answer {len(wrong)}" in done.stdout, (
        "only wrong ones are left out"
    )
    again = sum(n - 1 for n in server.asked.values())
    assert again <= KILLS * slots, f"{again} asked again by {KILLS} kills of {slots} in flight"
    assert not part.exists()


def test_a_journal_of_other_options_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "x.jsonl")
    answers = {1: {"index": 1}, 2: Fault("answer", "7 given")}
    asked = []

    def work(batch: list) -> list:
        asked.extend(batch)
        return [answers.get(n, {"index": n}) for n in batch]

    teachers.gather({"1": 1, "2": 2}, work, Journal(path, {"tasks": "a"}))
    again = Journal(path, {"tasks": "a"})
    with pytest.raises(UsageError, match="other options"):
        Journal(path, {"tasks": "b"})
    found = teachers.gather({str(n): n for n in range(1, 6)}, work, again, size=2, threads=2)
    assert sorted(asked) == [1, 2, 3, 4, 5] and set(again.entries) == set("12345")
    assert found == {str(n): answers.get(n, {"index": n}) for n in range(1, 6)}


TOO_LONG = (400, b'{"error": {"message": "that is too long"}}')


@pytest.fixture
def opened(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes the tests' sandbox, which is open already."""
    monkeypatch.setattr(coldstart, "open_sandbox", lambda *_, **__: contextlib.nullcontext(sandbox))


def endpoint_words(server: Server, out: Path) -> list[str]:
    return command(server.url, out, 6, 1)[2:]


@pytest.mark.usefixtures("opened")
def test_a_question_that_is_refused_for_good_is_dropped_and_the_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    server = Counting([TOO_LONG, (413, b"{}"), adds_up])
    run_main(monkeypatch, *endpoint_words(server, tmp_path / "out.jsonl"))
    server.shutdown()
    assert "refused 2" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4 == len(server.asked)


@pytest.mark.parametrize(
    "status, words, asked", [(400, "too long; so were all 6 questions", 6), (403, "403", 1)]
)
@pytest.mark.usefixtures("opened")
def test_a_server_that_refuses_everything_ends_the_run_and_its_cost_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, status, words, asked
) -> None:
    server, out = Server([(status, TOO_LONG[1])]), tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match=words):
        run_main(monkeypatch, *endpoint_words(server, out))
    server.shutdown()
    assert "0 requests answered" in capsys.readouterr().out and len(server.seen) >= asked
    part = Path(f"{out}.part")
    assert not part.exists() or len(part.read_text().splitlines()) == 1, "the next start asks them again"


@pytest.mark.usefixtures("opened")
def test_rewriting_keeps_all_of_one_file_and_does_not_ask_what_evaluation_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file is one task: the quota of those that draw questions would throw away what was paid for. Then a
    solution is edited: what was said to the old one is not taken for it."""
    rows = [QUESTION | {"solution": f"way {i}"} for i in range(3)]
    rows += [QUESTION | {"question": "What is 1 + 1?"}]
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(coldstart, "PER_TASK", 1)
    taboo = {Problem("", 0, "What is 1 + 1?", None).digest}
    monkeypatch.setattr(sources, "evaluated", lambda *_: taboo)
    said = [(200, chat(GOOD["r1ci"].replace("I", "I" * i))) for i in (1, 2)]
    server = Server([*said, (401, b"{}"), (200, chat(GOOD["r1ci"].replace("compute", "find")))])
    words = ["--source", "rewrite", "--url", server.url, "--model", "m", "--data", str(data), "--slots", "1"]
    words += ["--sandbox", "none", "--out", str(out)]
    with pytest.raises(UsageError, match="401"):
        run_main(monkeypatch, *words)
    data.write_text(data.read_text().replace("way 1", "another way"))
    run_main(monkeypatch, *words)
    server.shutdown()
    asked = [body["messages"][1]["content"].split()[-1] for _, _, body in server.seen]
    assert asked == ["0", "1", "2", "way", "2"] and server.seen[3][2]["messages"][1]["content"].count(
        "another"
    )
    assert "evaluation 1" in capsys.readouterr().out
    kept = [json.loads(line)["messages"][1]["content"] for line in out.read_text().splitlines()]
    assert len(kept) == 2, "the third was said twice in the same words"
    taboo.add(Problem("", 0, QUESTION["question"], None).digest)
    with pytest.raises(UsageError, match="4 questions, none that evaluation does not ask"):
        run_main(monkeypatch, *words[:-1], str(tmp_path / "none.jsonl"))


def test_without_a_question_left_to_ask_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions.Questions, "take", lambda *_: [])
    with pytest.raises(UsageError, match="evaluation asks all"):
        questions.to_ask(["toy_add_sum"], coldstart.Config(per_task=2))


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    woke = []

    def hangs(handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if not handler.server.ended.wait(5):  # Python drops an interrupt that meets a destructor
            os.kill(os.getpid(), signal.SIGINT)
        handler.server.ended.wait(20)
        woke.append(True)

    server = Server([hangs])
    endpoint = Endpoint(server.url, "m", retries=0)
    ask = teachers.remote_teacher(endpoint, 9, 1.0)
    journal = Journal(str(tmp_path / "x.jsonl"), {})
    with pytest.raises(KeyboardInterrupt):
        teachers.gather({"1": [{}], "2": [{}]}, ask, journal, endpoint=endpoint)
    assert not woke and len(server.seen) == 1 and not journal.entries
    server.ended.set()
    server.shutdown()


@pytest.mark.parametrize("bad", ["not json", "[1]", '["1", 3, null]', '["1", null, ["a", "b", "c"]]', "3"])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "x.jsonl.part"
    for text, line in ((f"{{}}\n{bad}\n", 2), (f"{bad}\n", 1)):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"x.jsonl.part: not a journal, line {line}: .*remove it"):
            Journal(str(tmp_path / "x.jsonl"), {})


def test_a_full_disk_leaves_no_torn_line_and_our_own_failures_are_not_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "x.jsonl")
    journal = Journal(path, {"tasks": "a"})
    found = teachers.gather({"1": 1}, lambda _: [Fault("sandbox", "out of order")], journal)
    assert found["1"].reason == "sandbox"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))  # in the middle of the next line
    try:
        with pytest.raises(UsageError, match="goes on from it"):
            journal.add("2", {"index": "2" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.add("3", {"index": 3})
    assert Journal(path, {"tasks": "a"}).entries == {"3": {"index": 3}}


def test_the_embedded_runs_data_is_what_it_was() -> None:
    """The demo's figures rest on these drafts."""
    found = from_programs(names("toy", "train")[:20], "r1ci", 3, 0.5, 0)
    text = repr([(d.problem.task, d.problem.index, [p for _, p in d.programs]) for d in found])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a23c287306c353cc"
    found = mixture(3000, 0)
    text = repr([(d.problem.task, d.problem.index, d.programs, d.protocol) for d in found])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "adcfce90ad07fed1"


def test_two_blocks_in_one_turn_are_a_mistake():
    text = "```python\nprint(1)\n```\nand\n```python\nprint(2)\n```"
    with pytest.raises(ValueError, match="2 code blocks in a turn; expected one code block at its end"):
        checks._program(text, PROTOCOLS["r1ci"], runs=True)
