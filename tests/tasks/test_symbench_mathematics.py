"""The mathematical tasks: two ways to each answer, exact values against floats, formulas against counting."""

import itertools
import json
import math
import random
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from tasks.symbench_mathematics import (
    TASKS,
    Drawn,
    Exact,
    bounded_sums,
    divisible,
    doubled_area,
    exact,
    heron,
    points,
    right_triangle,
    sides,
    surjections,
)

DRAWN = {name: task for name, task in TASKS.items() if isinstance(task, Drawn)}
every_drawn = pytest.mark.parametrize("task", DRAWN.values(), ids=DRAWN)


def float_of(text: str) -> float:
    return float(eval(text, {"sqrt": math.sqrt, "pi": math.pi}))


def one_of_each(task: Drawn, each: int) -> list:
    """`each` problems of every template."""
    found: dict[int, list] = {}
    for index in range(400):
        problem = task.problem(index)
        found.setdefault(problem.meta["template"], []).append(problem)
    assert sorted(found) == list(range(len(task.templates))), "every template is drawn"
    return [problem for problems in found.values() for problem in problems[:each]]


@every_drawn
def test_the_two_ways_to_every_answer_agree(task: Drawn) -> None:
    """The program of each template, run by another Python, and the formula; four questions of each."""
    problems = one_of_each(task, 4)
    code = (
        "import contextlib, io, json, sys\nprinted = []\nfor program in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n        exec(program, {})\n"
        "    printed.append(out.getvalue())\nprint(json.dumps(printed))"
    )
    programs = json.dumps([task.solution(p) for p in problems])
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], input=programs, capture_output=True, text=True, check=True
    )
    for problem, printed in zip(problems, json.loads(run.stdout), strict=True):
        assert task.grade(problem, printed).correct, (problem, printed)
        assert float_of(printed) == pytest.approx(float_of(problem.answer), rel=1e-12)


@every_drawn
def test_the_text_holds_what_the_program_is_given(task: Drawn) -> None:
    for problem in one_of_each(task, 2):
        for name, value in problem.meta["values"].items():
            if not name.startswith("_"):
                assert re.search(rf"(?<!\d){re.escape(str(value))}(?!\d)", problem.question), (name, problem)
        assert "{" not in problem.question


@every_drawn
def test_near_values_and_roundings_are_refused(task: Drawn) -> None:
    for problem in one_of_each(task, 2):
        value = float_of(problem.answer)
        near = [f"{value + 1:.6f}", f"-({problem.answer})", f"{problem.answer}/7*8", f"{problem.answer}*pi"]
        near += ["0", f"{problem.answer} or 5", f"x = {problem.answer} or 5", f"{problem.answer} apples"]
        near += [f"{value:.4f}"] * ("sqrt" in problem.answer or "pi" in problem.answer)
        if value:
            for wrong in near:
                assert not task.grade(problem, wrong).correct, (problem, wrong)


SAME = (
    (
        "6*sqrt(2)",
        "6√2",
        "sqrt(72)",
        r"6\sqrt{2}",
        r"\frac{12}{\sqrt{2}}",
        "$6 \\sqrt{2}$",
        "(6*sqrt(2))",
        "3*2*sqrt(2).",
    ),
    ("7/2", "3.5", r"\frac{7}{2}", r"\dfrac{14}{4}", "7 / 2", "[7/2]", "3.50"),
    ("5*pi/2", "5π/2", "2.5*pi", r"\frac{5\pi}{2}", r"\frac{5}{2}\pi", "5/2 pi", "pi*5/2"),
    ("1234567", "1,234,567", " 1234567.0 ", "'1234567'"),
    ("sqrt(3)/2", r"\frac{\sqrt{3}}{2}", "sqrt(3/4)", "√(3)/2", "1/2*sqrt(3)"),
    ("-4", "\u22124", "- 4"),
    ("0", "0.0", "-0", "0*pi"),
    ("2", "2*pi/pi", "sqrt(8)/sqrt(2)"),
    ("3*sqrt(5)*pi", "3√5π", "3 pi sqrt(5)"),
)


def test_spellings_of_a_value_are_equal_and_different_values_are_not() -> None:
    for spellings in SAME:
        assert {exact(spelling) for spelling in spellings} == {exact(spellings[0])} != {None}
    assert len({exact(spellings[0]) for spellings in SAME}) == len(SAME)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2",
        "1 1/2",
        "2(3)",
        "1,23",
        "1/0",
        "3+4",
        "2**3",
        "sqrt",
        "sqrt()",
        "(1",
        "1)",
        "pie",
        "1/",
        "*3",
    ]
    + [
        "sqrt(pi)",
        "sqrt(sqrt(2))",
        "sqrt(-4)",
        "3 4*pi",
        "9" * 300,
        "(" * 150,
        "i",
        "1e5",
        "\u0663",
        "7/2, 7/2",
    ],
)
def test_no_value(text: str) -> None:
    assert exact(text) is None


def test_exact_values_against_floats() -> None:
    rng = random.Random(0)
    for _ in range(500):
        value = Exact(
            Fraction(rng.randint(1, 500), rng.randint(1, 60)), rng.randrange(2), rng.choice((-1, 1))
        )
        as_float = value.sign * math.sqrt(value.square) * math.pi**value.power
        assert float_of(str(value)) == pytest.approx(as_float, rel=1e-12)
        assert exact(str(value)) == value
        inside = re.search(r"sqrt\((\d+)\)", str(value))
        assert not inside or all(int(inside[1]) % (k * k) for k in range(2, 40)), "the root is taken out"
    assert [str(Exact(Fraction(n))) for n in (0, 1, 72, Fraction(3, 4), Fraction(1, 2), 49)] == [
        *("0", "1", "6*sqrt(2)", "sqrt(3)/2", "sqrt(2)/2", "7")
    ]


def test_formulas_against_counting() -> None:
    for n, k in itertools.product(range(1, 6), range(1, 4)):
        ways = itertools.product(range(k), repeat=n)
        assert surjections(n, k) == sum(len(set(way)) == k for way in ways)
        for total in range(8):
            sums = itertools.product(range(n), repeat=k)
            assert bounded_sums(total, k, n - 1) == sum(sum(s) == total for s in sums)
    for divisors in ((2,), (4, 6), (2, 3, 5), (6, 10, 15)):
        expected = sum(any(n % d == 0 for d in divisors) for n in range(1, 101))
        assert divisible(100, *divisors) == expected


def test_triangles_against_coordinates() -> None:
    rng = random.Random(0)
    assert heron(3, 4, 5) == 36 and heron(13, 14, 15) == 84**2 and doubled_area(0, 0, 4, 0, 0, 3) == 12
    for _ in range(100):
        p, q, hypotenuse = right_triangle(rng)
        assert p * p + q * q == hypotenuse * hypotenuse
        a, b, c = sides(rng).values()
        assert max(a, b, c) < a + b + c - max(a, b, c) and heron(a, b, c) > 0
        x = points(rng, 3).values()
        assert doubled_area(*x) > 0


def test_products_by_long_multiplication() -> None:
    """Digit by digit, as on paper, from the text of the question."""
    for index in range(50):
        problem = TASKS["number_multiply"].problem(index)
        factors = re.findall(r"-?\d+", problem.question)
        digits = [1]
        for factor in factors:
            product = [0] * (len(digits) + len(factor) + 1)
            for (i, a), (j, b) in itertools.product(
                enumerate(digits), enumerate(reversed(factor.strip("-")))
            ):
                product[i + j] += a * int(b)
            for i in range(len(product) - 1):
                product[i + 1] += product[i] // 10
                product[i] %= 10
            digits = product
        sign = "-" * (sum(f.startswith("-") for f in factors) % 2)
        expected = sign + "".join(map(str, reversed(digits))).lstrip("0")
        assert problem.answer == expected
        assert TASKS["number_multiply"].grade(problem, f"{int(expected):,}").correct
        assert not TASKS["number_multiply"].grade(problem, f"{float(expected):.3e}").correct


def test_units_beside_a_number_do_not_matter_but_others_do() -> None:
    task = DRAWN["gsm_hard"]
    money = next(p for p in map(task.problem, range(50)) if "$" in task.templates[p.meta["template"]].units)
    for right in (f"{money.answer} dollars", f"${money.answer}", f"{money.answer} Dollars."):
        assert task.grade(money, right).correct
    for wrong in (f"{money.answer} km", f"{money.answer} cents", f"{money.answer} %"):
        assert not task.grade(money, wrong).correct
