r"""Rows of question files as others publish them. The right readings are written out by hand."""

import csv
import json
from pathlib import Path

import pytest

from plumbing.config import UsageError
from tasks import get, select
from tasks.math import load
from tasks.rows import final, row, unwrapped

NAN = float("nan")
DAPO = "Solve the following math problem step by step. The last line of your response should be of the form "
DAPO += "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
DAPO += 'Remember to put your answer on its own line after "Answer:".'
USER, SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": "It is \\boxed{4}."}

FREE = [  # record, question, answer, head prompt
    ({"messages": [USER], "answer": 4}, "q", "4", None),
    ({"messages": [SYSTEM, USER], "answer": 4}, "q", "4", "Be brief."),
    ({"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": "4"}}, "q", "4", "Be brief."),
    ({"messages": [SYSTEM, USER, SAID]}, "q", "4", "Be brief."),
    ({"messages": [USER, SAID], "answer": "5"}, "q", "5", None),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "#### 4"}]}, "q", "4",
     None),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "answer": "4"}, "q", "4",
     None),
    ({"prompt": [{"role": "developer", "content": "Be brief."}, USER], "answer": "4"}, "q", "4", "Be brief."),
    ({"instruction": "Add these.", "input": "1 and 3", "output": "4"}, "Add these.\n\n1 and 3", "4", None),
    ({"instruction": "Add 1 and 3.", "input": "", "output": "4"}, "Add 1 and 3.", "4", None),
    ({"instruction": "Add 1 and 3.", "output": "4"}, "Add 1 and 3.", "4", None),
    ({"passage": "Tom has 4.", "question": "How many?", "answer": "4"}, "Tom has 4.\n\nHow many?", "4", None),
    ({"question": "q", "answer": "4", "system": "Be brief."}, "q", "4", "Be brief."),
    ({"messages": [USER], "answer": "4", "system_prompt": "Be brief."}, "q", "4", "Be brief."),
    ({"prompt": [SYSTEM, USER], "answer": "4", "system": " "}, "q", "4", "Be brief."),
    ({"prompt": json.dumps([SYSTEM, USER]), "reward_model": "{'ground_truth': '4'}"}, "q", "4", "Be brief."),
    ({"prompt": [USER], "reward_model": {"ground_truth": '["\\\\frac12"]'}}, "q", "\\frac12", None),
    ({"question": "[1, 2] + [3]?", "answer": "[1, 2, 3]"}, "[1, 2] + [3]?", "[1, 2, 3]", None),
    ({"question": "[4]", "answer": "[4]"}, "[4]", "[4]", None),
    ({"query": "q", "response": "1 + 3 = 4\n#### 4\nThe answer is: 4"}, "q", "4", None),
    ({"question": "q", "answer": NAN, "solution": "so \\boxed{4}"}, "q", "4", None),
    ({"question": "q", "answer": "", "solution": "so \\boxed{4}"}, "q", "4", None),
    ({"question": "q", "answer": "nan", "solution": "so \\boxed{4}"}, "q", "4", None),
    ({"question": "q", "answer": None, "target": 4}, "q", "4", None),
    ({"question": "q", "answer": "We add 1 and 3. So we get 4.", "solution": "\\boxed{4}"}, "q", "4", None),
    ({"question": "q", "answer": "The answer is 4."}, "q", "4", None),
    ({"question": "q", "answer": "Final answer: 4"}, "q", "4", None),
    ({"question": "q", "answer": "We add the two numbers.\nThe answer is $4$."}, "q", "$4$", None),
    ({"question": "q", "answer": ["4"]}, "q", "4", None),
    ({"Question": "q", "Final Answer": "4"}, "q", "4", None),
    ({"question": "q", "finalAnswer": "4"}, "q", "4", None),
    ({"question": "q", "ground-truth": "4"}, "q", "4", None),
    ({"question": "q", "answer": "Paris, Rome"}, "q", "Paris, Rome", None),
    ({"question": "q", "answer": "the red balloon"}, "q", "the red balloon", None),
    ({"question": "q", "answer": "\\frac{1}{2} \\text{ or } 3"}, "q", "\\frac{1}{2} \\text{ or } 3", None),
    ({"question": DAPO.format("Find $x$.\n\nIt is odd."), "answer": "4"}, "Find $x$.\n\nIt is odd.", "4",
     None),
    ({"prompt": [USER | {"content": DAPO.format("How many?")}], "answer": "4"}, "How many?", "4", None),
    ({"a": 1, "b": 3, "question": "a + b?", "answer": 4}, "a + b?", "4", None),
]  # fmt: skip


@pytest.mark.parametrize("record, question, answer, system", FREE)
def test_a_question_and_its_free_answer(record: dict, question: str, answer: str, system: str | None) -> None:
    found = row(record)
    assert (found.question, found.answer, found.system, found.options) == (question, answer, system, ())


XYZ = ["x", "y", "z"]
CHOICES = [  # record, right option, options
    ({"choices": XYZ, "answer": 1}, "y", XYZ),  # MMLU
    ({"choices": ["1", "2", "3"], "answer": 1}, "2", ["1", "2", "3"]),  # a number that is no text is a place
    ({"options": XYZ, "answer": "C", "answer_index": 2}, "z", XYZ),  # MMLU-Pro
    ({"choices": {"text": XYZ, "label": ["A", "B", "C"]}, "answerKey": "B"}, "y", XYZ),  # ARC
    ({"choices": {"text": XYZ, "label": ["1", "2", "3"]}, "answerKey": "1"}, "x", XYZ),
    ({"options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}, "y", ["x", "y"]),  # MedQA
    ({"opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3}, "w", [*XYZ, "w"]),  # MedMCQA
    ({"A": "x", "B": "y", "C": "z", "D": NAN, "answer": "C"}, "z", XYZ),
    ({"A": 1, "B": 2, "C": 3, "answer": "(b)"}, "2", ["1", "2", "3"]),
    ({"option1": "x", "option2": "y", "answer": "1"}, "x", ["x", "y"]),
    ({"options": ["A)21", "B)21.5", "C)22"], "correct": "B"}, "21.5", ["21", "21.5", "22"]),
    ({"options": "['x', 'y']", "answer": "1"}, "y", ["x", "y"]),  # in a CSV
    ({"options": ["A) x", "B) y"], "answer": "B) y"}, "y", ["x", "y"]),
    ({"options": ["x", "y"], "answer": "(B) y"}, "y", ["x", "y"]),
    ({"choices": [{"id": "A", "text": "x"}, {"id": "B", "text": "y"}], "answer": "B"}, "y", ["x", "y"]),
    ({"choices": [{"text": "x"}, {"text": "y"}], "answer": "B"}, "y", ["x", "y"]),
    ({"choices": ["+", "-"], "answer": "-"}, "-", ["+", "-"]),
    ({"endings": XYZ, "label": "2"}, "z", XYZ),
    ({"choices": ["Yes", "No"], "answer": "no"}, "No", ["Yes", "No"]),
    ({"choices": ["10", "20", "30"], "answer": "20"}, "20", ["10", "20", "30"]),
    ({"choices": [3, 4, 5], "answer": 4}, "4", ["3", "4", "5"]),
    ({"choices": ["A", "B"], "answer": "B"}, "B", ["A", "B"]),
    ({"choices": XYZ, "answer": 2.0}, "z", XYZ),
]


@pytest.mark.parametrize("record, right, options", CHOICES)
def test_multiple_choice_columns_are_asked_in_their_order(record: dict, right: str, options: list) -> None:
    found = row({"question": "q"} | record)
    assert (found.answer, list(found.options), found.fixed) == (right, options, True)


def test_a_stem_with_its_options() -> None:
    stem = {"stem": "q", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]}
    found = row({"question": stem, "answerKey": "B"})
    assert (found.question, found.answer, found.options) == ("q", "y", ("x", "y"))


REFUSED = [
    ({"answer": "4"}, "no question"),
    ({"question": " ", "answer": "4"}, "no question"),
    ({"question": NAN, "answer": "4"}, "no question"),
    ({"question": "q"}, "no answer"),
    ({"question": "q", "answer": NAN}, "answer is empty"),
    ({"question": "q", "answer": "NaN"}, "answer is empty"),
    ({"question": "q", "answer": ""}, "answer is empty"),
    ({"question": "q", "answer": "We add the two numbers, and then we have it."}, "a text without"),
    ({"question": "q", "solution": "First we add. Then we divide."}, "a text without"),
    ({"question": "q", "solution": "Let x be it.\nThen x is odd."}, "a text without"),
    ({"question": "q", "answer": "", "solution": "Hence 4"}, "answer is empty, solution is a text"),
    ({"question": "q", "answer": True}, "no text or number"),
    ({"question": "q", "answer": "-"}, "answer is empty"),
    ({"question": "q", "answer": "?"}, "answer is empty"),
    ({"question": "q", "answer": "The triangle is equilateral"}, "a text without"),
    ({"question": "q", "choices": XYZ, "answer": "B) x"}, "the right option is not told"),
    ({"question": "q", "answer": ["3", "4"]}, "no text or number"),
    ({"question": "q", "answer": "\\boxed{}"}, "a text without"),
    ({"question": "q", "answer": "####"}, "a text without"),
    ({"question": "q\ud800", "answer": "4"}, "half a surrogate pair"),
    ({"question": "q", "answer": "\udc00"}, "half a surrogate pair"),
    ({"question": "q", "choices": ["x", "\ud800"], "answer": 0}, "half a surrogate pair"),
    (
        {"messages": [SYSTEM, USER], "answer": "4", "system": "Be long."},
        "a head prompt in the row and one in",
    ),
    ({"messages": [SYSTEM], "answer": "4"}, "messages without a question"),
    ({"messages": [USER, SAID, USER], "answer": "4"}, "messages that are no question"),
    ({"messages": [USER, SYSTEM], "answer": "4"}, "messages without a question"),
    ({"messages": [SYSTEM, USER]}, "no answer"),
    ({"question": "q", "choices": XYZ}, "the right option is not told"),
    ({"question": "q", "choices": XYZ, "answer": 3}, "the right option is not told"),
    ({"question": "q", "choices": XYZ, "answer": "E"}, "the right option is not told"),
    ({"question": "q", "choices": XYZ, "answer": "B", "answer_index": 2}, "the right option is not told"),
    ({"question": "q", "choices": ["x", "x"], "answer": 0}, "all different"),
    ({"question": "q", "choices": ["x"], "answer": 0}, "all different"),
    ({"question": "q", "choices": ["x", None], "answer": 0}, "all different"),
    ({"question": "q", "choices": [1, 2, 3], "answer": 2}, "names more than one"),
    ({"question": "q", "choices": "['3', '2', '7']", "answer": "2"}, "names more than one"),
    ({"question": "q", "choices": ["B", "A"], "answer": "A"}, "names more than one"),
    ({"question": "q", "choices": "x or y", "answer": "x"}, "expected a list"),
]


@pytest.mark.parametrize("record, reason", REFUSED)
def test_a_row_without_a_question_or_an_answer_is_refused(record: dict, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        row(record)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, question",
    [
        ("How many? Let's think step by step and output the final answer within \\boxed{}.", "How many?"),
        ('How many? Let\'s think step by step and output the final answer after "####".', "How many?"),
        ("Find x.\nPlease reason step by step, and put your final answer within \\boxed{}.", "Find x."),
        ("Let $a=1$. Please compute $a+1$. Put the answer in \\boxed{}.", "Let $a=1$. Please compute $a+1$."),
        ("Solve x + 1 = 2.\n\nHow many answers?", "Solve x + 1 = 2.\n\nHow many answers?"),
        ("Your answer is 4. Is it right?", "Your answer is 4. Is it right?"),
        ("What does \\boxed{} do in LaTeX?", "What does \\boxed{} do in LaTeX?"),
        ("Put your answer in \\boxed{}.", "Put your answer in \\boxed{}."),
    ],
)  # fmt: skip
def test_what_asks_for_another_form_is_taken_off_and_nothing_else(text: str, question: str) -> None:
    assert unwrapped(text) == question


@pytest.mark.parametrize(
    "text, answer",
    [
        ("#### 5\nThe answer is: 5", "5"),
        ("\\boxed{1}, no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("5 apples", "5 apples"),
        ("-3/4", "-3/4"),
        ("No", "No"),
        ("\\text{the set of all integers that are even and positive}", None),
        ("Therefore 5", None),
        ("It is 5. It is not 6.", None),
        ("The value of x is 5", None),
        ("Tom has two apples.", None),
        ("The total is \\frac{1}{2}", None),
        ("two apples", "two apples"),
        ("x is even", "x is even"),
        ("St. Louis, New York", "St. Louis, New York"),
        ("Paris.", "Paris."),
    ],
)
def test_the_final_answer_of_a_solution(text: str, answer: str | None) -> None:
    assert final(text) == answer


# -- whole files -----------------------------------------------------------------------------------


def write(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_equal_rows_are_one_question(tmp_path: Path) -> None:
    """With and without DAPO's wrapper, and a thousand times; another answer makes another question."""
    rows = [{"question": DAPO.format(f"q{i % 3}?"), "answer": i % 3} for i in range(3000)]
    rows += [{"question": "q1?", "answer": "1"}, {"question": "q1?", "answer": "2"}]
    task = load(write(tmp_path / "set.jsonl", rows))
    assert task.size == 4 and len(task.number) == 3002 and list(task.number[-3:]) == [2, 1, 3]
    assert [task.problem(i).question for i in range(5)] == ["q0?", "q1?", "q2?", "q1?", "q0?"]
    assert [task.problem(i).answer for i in range(4)] == ["0", "1", "2", "2"]


def test_the_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": i} for i in range(3)]
    same = load(write(tmp_path / "a.jsonl", rows)).digest
    assert load(write(tmp_path / "b.jsonl", [*rows, rows[0]])).digest == same
    for number, change in enumerate([rows[::-1], rows[:2], [*rows[:2], {"question": "q2", "answer": 3}]]):
        assert load(write(tmp_path / f"{number}.jsonl", change)).digest != same


def test_options_keep_their_order_and_letters_are_graded(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["x", "y", "none of these"], "answer": i} for i in range(3)]
    task = get(write(tmp_path / "set.jsonl", rows))
    for i, letter in enumerate("ABC"):
        problem = task.problem(i)
        assert "(A) x\n(B) y\n(C) none of these" in problem.question and problem.answer == letter
        assert [task.grade(problem, given).correct for given in "ABC"] == [given == letter for given in "ABC"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_bad_row_is_named_by_its_number_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"set.{suffix}", [{"question": "q", "answer": a} for a in ("1", "2", "")]
    if suffix == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as f:
            out = csv.DictWriter(f, ["question", "answer"])
            out.writeheader()
            out.writerows(rows)
    elif suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(r) + "\n" for r in rows))
    place = {"jsonl": "line 3", "json": "entry 2", "csv": "line 4", "parquet": "row 2"}[suffix]
    with pytest.raises(UsageError, match=f"set.{suffix}, {place}: no answer: answer is empty"):
        load(str(path))


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("a.json", '[{"question": "q", "answer": "1"},]', "expected a JSON list of records"),
        ("a.jsonl", '[\n{"question": "q", "answer": "1"},\n]', "expected a JSON list of records"),
        (
            "a.json",
            '{"train": [{"question": "q"}], "test": [{"question": "q"}]}',
            "several lists, train, test",
        ),
        ("a.csv", "question,answer\nWhat is 1, 2?,3\n", "line 2: more fields than names; expected quotes"),
        ("a.csv", 'question,answer\nq,"3\n', "after line 1: unexpected end of data; expected closed quotes"),
        ("a.csv", 'question,answer\n"\\"q\\", he said",3\n', "after line 1: .*; expected closed quotes"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=reason):
        load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl.gz", "a.txt"])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match="a file; expected .jsonl, .json, .csv or .parquet"):
        select(str(tmp_path / name))


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path / "SET.JSONL", [{"question": "q", "answer": "1"}])
    assert select(path) == [path] and get(path).problem(0).answer == "1"


def test_a_value_of_another_type_anywhere_is_read_or_refused_in_one_line() -> None:
    wrong = [None, True, 1, 0.5, "x", [], {}, [1], [None], [[]], {"a": [1]}, [{"type": ["a"]}], {"text": [1]}]
    wrong += [{"text": ["x", "y"], "label": 1}, [{"text": ["x"], "label": {}}], {"stem": 1}, "[1, 2]", "[["]
    names = ["question", "messages", "answer", "solution", "reward_model", "choices", "label", "answerKey"]
    whole = {"question": "q", "choices": XYZ, "answer": "B", "context": "c", "messages": [USER]}
    for base in (whole, {"question": "q", "answer": "4"}, {"messages": [USER], "answer": "4"}):
        for name in names:
            for value in wrong:
                try:
                    row(base | {name: value})
                except ValueError as error:
                    assert str(error) and "\n" not in str(error)
