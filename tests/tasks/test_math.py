r"""Equality of mathematical answers by hand-made pairs, and files as their owners publish them."""

import csv
import json
import time
from pathlib import Path

import pytest

from plumbing.config import UsageError
from tasks import get, math_equal, select
from tasks.equality import SECONDS
from tasks.math import load

AIME = Path(__file__).parents[3] / "shared" / "data" / "aime24.jsonl"
SAME = [
    ("0.5", "1/2"),
    ("0.5", r"\frac{1}{2}"),
    (r"\frac12", "0.5"),
    (r"1\frac{1}{2}", "3/2"),
    ("1 1/2", "1.5"),
    ("-0.5", r"-\dfrac{1}{2}"),
    ("50%", "0.5"),
    (r"50\%", "50"),
    ("10 percent", r"10\%"),
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    ("033", "33"),
    ("204", "204.0"),
    (r"1.2 \times 10^5", "120000"),
    ("1.6666666666666667", "5/3"),
    ("0.30000000000000004", "0.3"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{27}", "3"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
    (r"3\sqrt{2}+\pi", r"\pi+3*sqrt(2)"),
    (r"12\text{ cm}", "12"),
    (r"5\text{ cm}^2", "5 cm^2"),
    (r"90^\circ", "90 degrees"),
    ("$5", "5 dollars"),
    ("120 apples", "120"),
    ("{1,2,3}", r"\{3, 1, 2\}"),
    (r"\{1,2\}", "2, 1"),
    ("18 and -3", "-3, 18"),
    (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
    ("(0, 1]", r"\left(0,1\right]"),
    (r"(-\infty, 3)\cup(5,\infty)", r"(5,\infty) \cup (-\infty,3)"),
    (r"(3, \frac{\pi}{2})", "(3,pi/2)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1,2],[3,8/2]]"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("y=2x+3", "2x+3"),
    ("2x+3=y", "y=2x+3"),
    ("x=5", "5"),
    (r"\sin^2 x+\cos^2 x", "1"),
    (r"\cos(\pi/3)", "1/2"),
    (r"e^{2}", "exp(2)"),
    ("5!", "120"),
    ("2^{10}", "1024"),
    (r"\text{Evelyn}", "evelyn"),
    ("(C)", r"\text{C}"),
    (r"\boxed{7}", "$7$."),
    ("Paris, Rome", "rome, paris"),
    (r"\sqrt{x}\sqrt{y}", r"\sqrt{xy}"),  # wherever both are defined
    (r"\ln(x^3)", r"3\ln x"),
    ("|x|", r"\sqrt{x^2}"),
    ("2xy", "2yx"),
    ("11111_2", "31"),
    ("1F_{16}", "11111_2"),
    ("x=5, y=2", "y=2, x=5"),
    ("y=x+1", "y=1+x"),
    ("5 m", "5 meters"),
    (r"5\text{ m}", "5 metres"),
    ("3 min", "3 minutes"),
    (r"3\text{ s}", "3 seconds"),
    ("2 hours", r"2\mathrm{h}"),
    ("2 kg", "2 kilograms"),
    ("7 g", "7 grams"),
    ("5 sq cm", r"5\text{ cm}^2"),
    ("60 mph", "60 miles per hour"),
    ("6 inches", "6 in"),
    (r"\$1,234.50", "1234.5 dollars"),
    ("$5$", "5"),
    ("xsinx", "sin(x)x"),
]
DIFFERENT = [
    ("0.33", "1/3"),
    ("12 cm", "12 m"),
    ("[1,2)", "(1,2)"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "{1,2}"),
    ("{1,2}", "{1,2,3}"),
    ("(1,2,3)", "(1,2)"),
    ("5x", "5"),
    ("x^2", "x^3"),
    (r"\sqrt2", "1.41"),
    (r"\sin x", r"\cos x"),
    (r"\infty", r"-\infty"),
    ("50%", "5"),
    ("1,234", "1235"),
    ("1 2", "12"),
    ("2 1/2", "1"),
    ("1011_2", "1011_3"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    ("", "0"),
    ("", ""),
    ("None", "0"),
    ("yes", "no"),
    ("1/0", "1"),
    ("listen", "silent"),
    ("EDCBA", "ABCDE"),
    ("x=listen", "x=silent"),
    ("dog bites man", "man bites dog"),
    ("listen%", "silent"),
    ("|x|", "x"),
    ("101_2", "101"),
    ("129_2", "129"),
    ("1,2 m", "1"),
    ("x=5", "y=5"),
    ("y=2x", "z=2x"),
    (r"x\in[0,1]", r"y\in[0,1]"),
    ("x=1, y=2", "x=2, y=1"),
    ("5 m", "5 minutes"),
    ("5 meters", "5 cm"),
    ("5 g", "5 kg"),
    (r"5\text{ m}^2", "5 meters"),
    (r"\$5", r"5\%"),
    ("$5", "5%"),
    ("$5", "5 cents"),
    (r"\sqrt{x^2}", "x"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_in_other_words(a: str, b: str) -> None:
    assert math_equal(a, b) and math_equal(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(a: str, b: str) -> None:
    assert not math_equal(a, b) and not math_equal(b, a)


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "((((9^99)^99)^99)^99)^99", "(9!)!", "(" * 500, "1" * 5000, "\\frac{" * 100, "x^" * 200]
    + [
        "__import__('os').getcwd()",
        "\\sqrt{\\sqrt{" * 30,
        "{" * 400 + "1" + "}" * 400,
        "\udcff\x00",
        "1e999999",
    ],
)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    assert not math_equal(text, "1") and not math_equal("x+1", text)
    assert time.perf_counter() - began < 2 * SECONDS + 5


def test_complex_numbers() -> None:
    assert math_equal("(1+i)(1-i)", "2")
    assert not math_equal("(1+i)^2", "2")


# -- files ---------------------------------------------------------------------------------------------


def lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"input": "2+2?", "output": "4"}, "4"),  # AIME
        ({"problem": "q", "solution": "so \\boxed{\\frac{1}{2}}", "answer": "\\frac12", "level": 3}, "0.5"),
        ({"problem": "q", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."}, "1/2"),
        ({"question": "q", "answer": "6*7=42\n#### 1,042"}, "1042"),  # GSM8K
        ({"input": "q", "code": "def solution(): ...", "target": 1.6666666666666667}, "5/3"),  # GSM-hard
        (
            {"prompt": [{"content": "q", "role": "user"}], "reward_model": {"ground_truth": "34"}},
            "34",
        ),  # DAPO-Math-17k
        ({"Problem": "q", "Answer": 204}, "204"),
    ],
)
def test_files_as_they_are_published(tmp_path: Path, record: dict, answer: str) -> None:
    name = lines(tmp_path / "set.jsonl", record)
    assert select(name) == [name]
    problem = get(name).problem(0)
    assert problem.question in ("q", "2+2?") and get(name).size == 1
    assert get(name).grade(problem, answer).correct
    for wrong in ("", None, "nonsense", "17"):
        assert not get(name).grade(problem, wrong).correct


def test_json_lists_and_parquet(tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "answer": i} for i in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(records))
    (tmp_path / "named.json").write_text(json.dumps({"canary": "", "examples": records}))
    names = [str(tmp_path / "list.json"), str(tmp_path / "named.json")]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    nested = [
        {"prompt": [{"content": r["question"]}], "reward_model": {"ground_truth": str(r["answer"])}}
        for r in records
    ]
    parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "set.parquet")
    for name in [*names, str(tmp_path / "set.parquet")]:
        found = [get(name).problem(i) for i in range(4)]
        assert [p.question for p in found] == ["q0", "q1", "q2", "q0"]
        assert [p.answer for p in found] == ["0", "1", "2", "0"]


def test_multiple_choice_is_shuffled_and_answered_by_letter_or_text(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(
            ["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)), "Subdomain"]
        )
        for i in range(40):
            out.writerow([f"Which, {i}?", f"right {i}", "bad one", "bad two\n", "bad three", "physics"])
    task = get(str(path))
    letters = set()
    for i in range(40):
        problem = task.problem(i)
        letters.add(problem.answer)
        assert f"({problem.answer}) right {i}" in problem.question
        for text in (
            problem.answer,
            f"({problem.answer.lower()})",
            f"{problem.answer}. right {i}",
            f"right {i}",
            f"\\text{{{problem.answer}}}",
            f"**{problem.answer}**",
            f"Answer: {problem.answer}",
        ):
            assert task.grade(problem, text).correct, text
        for text in (": or B", ") bad one", " or B", ". bad two"):
            assert not task.grade(problem, problem.answer + text).correct, text
        for letter in set("ABCDE") - {problem.answer}:
            assert not task.grade(problem, letter).correct
        assert not task.grade(problem, "bad two").correct and not task.grade(problem, "").correct
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"question": "q", "answer": 1}\nnot json\n', "line 2"),
        ('{"question": "q", "answer": 1}\n{"question": "q"}\n', "line 2: no answer; keys are question"),
        ('{"answer": 1}\n', "line 1: no question; keys are answer"),
        ('{"question": "q", "answer": " "}\n', "line 1: no answer: answer is empty"),
        ("[1, 2]\n", "line 1: a list; expected an object"),
        ('{"question": "q", "answer": 1}\n' + "[" * 200_000 + "\n", "line 2: nested too deeply"),
        ("", "no questions in it"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load(str(path))
    assert str(path) in str(error.value) and reason in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match="no such file"):
        select("nowhere.jsonl")


@pytest.mark.skipif(not AIME.is_file(), reason="the folder of others' data is not here")
def test_aime_loads_as_it_is() -> None:
    task = get(str(AIME))
    assert task.size == 30
    for i in range(30):
        problem, other = task.problem(i), task.problem(i + 1)
        assert task.grade(problem, f"\\boxed{{{int(problem.answer)}}}").correct
        assert task.grade(problem, other.answer).correct == (int(problem.answer) == int(other.answer))
