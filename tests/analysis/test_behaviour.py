"""The behaviour statistics, on episodes made by hand with numbers counted by hand."""

import random

import pytest

from analysis import behaviour
from analysis.behaviour import measure, purpose
from episode import Call, Episode
from sandbox import Result
from tasks import Problem
from tokenizer import Source
from training import metrics

FAILED = "error"


def call(code: str, stdout: str = "", status: str = "ok", start: int = 0) -> Call:
    return Call(code, Result(status, stdout, "", 0, None, 0.1, 0.1, 10.0, False), start)


def episode(*calls: Call, correct: bool = True, answer: str | None = "1", finish: str = "stop") -> Episode:
    e = Episode(Problem("toy_add_sum", 0, "?", 1), 0, calls=list(calls), correct=correct, answer=answer)
    e.finish = finish
    e.append([1, 2, 3], Source.PROMPT)
    return e


def three() -> list[Episode]:
    """Right after a repair; wrong with a program that failed; right in words."""
    a = episode(
        call("import re\n\n# a comment\nprint(oops)", status=FAILED, start=5), call("print(1)", "1\n")
    )
    a.append([4] * 8, Source.POLICY, [-1.0] * 8)  # the first program begins at token 5, the third of these
    a.append([5] * 6, Source.TOOL)
    a.append([4] * 4, Source.POLICY, [-1.0] * 4)
    a.append([5] * 2, Source.TOOL)
    a.append([4] * 4, Source.POLICY, [-1.0] * 4)
    b = episode(call("x = 1\nx = (", status=FAILED, start=3), correct=False, answer=None, finish="length")
    b.append([4] * 10, Source.POLICY, [-1.0] * 10)
    c = episode()
    c.append([4] * 5, Source.POLICY, [-1.0] * 5)
    return [a, b, c]


def test_every_statistic_by_hand() -> None:
    assert measure(three()) == {
        "response_tokens": pytest.approx((16 + 10 + 5) / 3),
        "tool_tokens": pytest.approx(8 / 3),
        "truncated": pytest.approx(1 / 3),
        "answered": pytest.approx(2 / 3),
        "code_ratio": pytest.approx(2 / 3),
        "calls": 1.0,
        "calls_failed": pytest.approx(2 / 3),
        "right_programs": 1.0,  # a number, not a mean
        "code_lines": 2.5,  # 3 and 2
        "first_call": pytest.approx((2 / 16 + 0 / 10) / 2),
        "last_pass_right": 1.0,
        "last_pass_wrong": 0.0,
        "repaired": 0.5,
        "self_checked": 0.0,
        "purposes": {"text": pytest.approx(1 / 3), "calculation": pytest.approx(1 / 3),
                     "unparsable": pytest.approx(1 / 3)},
    }  # fmt: skip


def test_right_programs_add_up_and_the_rest_does_not() -> None:
    once, twice = measure(three()), measure(three() + three())
    assert twice.pop("right_programs") == 2 * once.pop("right_programs")
    assert twice.pop("purposes") == once.pop("purposes")
    assert twice == pytest.approx(once)


def test_what_was_never_seen_is_none_and_not_zero() -> None:
    row = measure([three()[2]])
    absent = {name for name, value in row.items() if value is None}
    assert absent == {"code_lines", "first_call", "last_pass_right", "last_pass_wrong", "repaired"}
    assert row["purposes"] == {} and row["right_programs"] == 0


def test_it_agrees_with_what_training_logs() -> None:
    """rollout.statistics counts some of the same for the metrics of a training run."""
    rng = random.Random(0)
    made = []
    for _ in range(50):
        statuses = rng.choices(["ok", "error", "timeout", "signal"], k=rng.randint(0, 4))
        e = episode(*(call("1", status=s, start=3) for s in statuses), finish=rng.choice(["stop", "length"]))
        for source in rng.choices([Source.POLICY, Source.TOOL], k=rng.randint(1, 6)):
            e.append([4] * rng.randint(1, 9), source)
        e.append([4], Source.POLICY)
        made.append(e)
    sums, row = metrics.statistics(made), measure(made)
    for name in ("code_ratio", "calls", "calls_failed", "truncated", "response_tokens", "tool_tokens"):
        assert row[name] == pytest.approx(sums[name] / 50), name


def test_a_repair_needs_a_later_program_that_runs() -> None:
    good, bad = call("1"), call("1", status="timeout")
    for calls, expected in (
        ([], None), ([good], None), ([bad], 0), ([good, bad], 0), ([bad, bad], 0), ([bad, good], 1),
        ([bad, good, bad], 1), ([good, bad, bad, good], 1),
    ):  # fmt: skip
        assert behaviour.repaired(episode(*calls)) == expected


@pytest.mark.parametrize(
    "calls, checked",
    [
        ([call("print(6 * 7)", "42\n")], False),
        ([call("assert 6 * 7 == 42\nprint(42)", "42\n")], False),  # nothing earlier to check
        ([call("print(6 * 7)", "42\n"), call("print(sum([7] * 6))", "a sum:\n42\n")], True),  # derived again
        ([call("print(6 * 7)", "42\n"), call("print(6 * 7)", "42\n")], False),  # only run again
        ([call("print(6 * 7)", "42\n"), call("print(6 * 8)", "48\n")], False),
        ([call("print(6 * 7)", "42\n"), call("print(sum([7] * 6) == 42)", "True\n")], True),
        ([call("print(6 * 7)", "42\n"), call("assert x != 41", "", FAILED)], True),  # failing is checking too
        ([call("print(6 * 7)", "42\n"), call("print(42 + 1)", "43\n")], False),  # used, not checked
        ([call("print(6 * 7)", "42\n"), call("print(5 == 6)", "False\n")], False),  # of something else
        ([call("print(6 * 7)", "42", FAILED), call("print(sum([7] * 6) == 42)", "True")], False),
        ([call("print([1, 2])", "[1, 2]\n"), call("print(f() == [1,2])", "True\n")], True),
        ([call("print('ab')", "ab\n"), call("if s[::-1] == 'ab': print('yes')", "yes\n")], True),
        ([call("x = 1", ""), call("y = 1", "\n")], False),  # both print nothing
        ([call("print(1)", "1\n"), call("print(2)", "2\n"), call("print(3 - 2)", "1\n")], True),
        ([call("print(1)", "1\n"), call("if (", "", FAILED)], False),
    ],
)
def test_self_check(calls: list[Call], checked: bool) -> None:
    assert behaviour.self_checked(episode(*calls)) == checked


@pytest.mark.parametrize(
    "code, name",
    [
        ("print(3 * (4 + 5))", "calculation"),
        ("xs = [1, 2]\nxs = [x + 1 for x in xs if x > 1]\nprint(sum(xs))", "calculation"),
        ("total = 0\nfor i in range(9):\n    total += i * i\nprint(total)", "calculation"),
        ("import numpy as np\nprint(np.linalg.solve([[1, 2], [3, 4]], [5, 6]))", "calculation"),
        ("", "calculation"),
        ("assert 3 * 4 == 12", "check"),
        ("x = 5\nprint(x ** 2 == 25)", "check"),
        ("print('valid:', all(c in 'ab' for c in 'abba') and not False)", "check"),
        ("print(is_valid([1, 2]))", "check"),
        ("print('done')", "calculation"),
        ("from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**2 - 2))", "symbolic"),
        ("import sympy.abc\nprint(sympy.factorint(60))", "symbolic"),
        ("import itertools\nfor p in itertools.permutations([1, 2, 3]):\n    print(p)", "search"),
        ("print([(a, b) for a in range(9) for b in range(9) if a * b == 12])", "search"),
        ("for a in range(9):\n    for b in range(9):\n        if a < b:\n            print(a)", "search"),
        ("for n in range(99):\n    if n * n > 50:\n        print(n)\n        break", "search"),
        ("def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\nprint(fib(9))", "search"),
        ("from collections import deque\nq = deque([0])\nwhile q:\n    x = q.popleft()", "search"),
        ("for a in range(9):\n    for b in range(9):\n        print(a * b)", "calculation"),
        ("import random\nprint(sum(random.random() for _ in range(9)))", "simulation"),
        ("x = 100\nwhile x > 1:\n    x = x // 2 + 1 if x % 2 else x // 2\nprint(x)", "simulation"),
        ("xs = [1, 2]\nfor i in [1, 0]:\n    xs[i], xs[0] = xs[0], xs[i]\nprint(xs)", "simulation"),
        ("print('a b c'.split()[1].upper())", "text"),
        ("import re\nprint(re.findall('\\d', 'a1'))", "text"),
        ("print(1", "unparsable"),
        ("x = 1\n  y = 2", "unparsable"),
        ("print('\0')", "unparsable"),
        ("(" * 5000 + ")" * 5000, "unparsable"),
        ("x = " + "-" * 100_000 + "1", "unparsable"),
    ],
)  # fmt: skip
def test_purpose(code: str, name: str) -> None:
    assert purpose(code) == name


def test_strange_programs_are_measured_without_noise(recwarn) -> None:
    huge = call("print(x == 0x" + "f" * 5000 + ")", "1\n")
    deep = call("print(x == " + "-" * 2000 + "1)", "1\n")
    e = episode(call("print('\\d')", "\\d\n"), huge, deep, call("print(x == (1,)[0])", "2\n"))
    e.append([4], Source.POLICY)
    row = measure([e])
    assert sum(row["purposes"].values()) == pytest.approx(1) and not recwarn.list


def test_the_table_says_what_each_figure_is() -> None:
    lines = behaviour.table({"A": measure(three()), "B": measure([three()[2]])}).split("\n")
    assert lines[0].split()[:3] == ["behaviour", "A", "B"]
    shown = {line.split()[0]: line for line in lines}
    for statistic in behaviour.STATISTICS:
        assert statistic.__doc__.splitlines()[0] in shown[statistic.__name__]
    assert shown["first_call"].split()[1:3] == ["0.062", "-"] and shown["text"].split()[1:] == [
        "0.333",
        "0.000",
    ]
