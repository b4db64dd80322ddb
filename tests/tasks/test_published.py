"""SymBench as published: samples of our own in its layouts, and the published ones where ABACUS_SYMBENCH
names their folder."""

import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import evaluate
from plumbing.config import UsageError
from plumbing.ranks import World
from tasks import RL_START, Problem, get, use_symbench
from tasks import __main__ as command
from tasks.published import TABLE, plans, puzzles
from tasks.published.reading import Sample

OFFICIAL = Path(os.environ.get("ABACUS_SYMBENCH", "none"))


@pytest.fixture(autouse=True)
def generated_again() -> Iterator[None]:
    yield
    use_symbench(None)


# name of the folder -> question, solution.json, right answers, wrong answers
ASKED = {
    "2048_dataset": (  # left; the edge; blocked by the 8; right; into the other 4
        "move the number in position (1, 2) using the sequence 'lldrr':\n0, 4, 4\n8, 16, 2\n4, 2, 2\n\nWhat?",
        {"solution": "none"},
        ["0, 0, 8\n8, 16, 2\n4, 2, 2", "[[0,0,8],[8,16,2],[4,2,2]]"],
        ["0, 4, 4\n8, 16, 2\n4, 2, 2", "0, 0, 8, 8, 16, 2, 4, 2", "0"],
    ),
    "combinatorial_calculation": (
        "Now the input numbers are: 6, 2, 7, the target values is: 10",
        {"solution": ["6", "/", "2", "+", "7"]},
        ["[6, /, 2, +, 7]", "6/2+7", "[(, 6, /, 2, ), +, 7]"],
        ["[7, +, 6, /, 2]", "[6, +, 2, +, 7]", "10", "[6, /, 2, +, 7, +, 0]"],
    ),
    "constrained_linear_arrangement": (
        "A has Stick (A), Tiger (B), Chicken (C), and Worm (D).\n1. Stick beats Tiger, Tiger eats Chicken, "
        "Chicken eats Worm, Worm beats Stick.\nRound 1: A, win.\nRound 2: B, loss.\nRound 3: C, draw.\n",
        {"solution": ["B", "A", "C"]},
        ["B,A,C", "['b', 'a', 'c']"],
        ["B,A,B", "D,A,C", "B,A", "B,A,E", "A,B,C"],
    ),
    "cryptanalysis": (
        "1. Guess: 38TA, Feedback: none",
        {"answer": ["5", "3", "F", "A"]},
        ['["5", "3", "F", "A"]', "53FA"],
        ['["3", "5", "F", "A"]', "53FB", "53F", ""],
    ),
    "eight_queens_dataset": (
        "Place them:\n" + "\n".join(["10000000", "00000000", "0000000X", *["00000000"] * 5]),
        {"solution": [[0, 0], [1, 4], [2, 7], [3, 5], [4, 2], [5, 6], [6, 1], [7, 3]]},  # on the X
        ["0 0, 1 6, 2 4, 3 7, 4 1, 5 3, 6 5, 7 2"],
        ["0 0, 1 4, 2 7, 3 5, 4 2, 5 6, 6 1, 7 3", "0 0, 1 6, 2 4, 3 7, 4 1, 5 3, 6 5", "0 0"],
    ),
    "letter_logic_diagram": (
        "The puzzle:\n\na,,c\n,c,\nc,,b\n",
        {"solution": [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]},
        ["a,b,c\nb,c,a\nc,a,b", "[['a','b','c'],['b','c','a'],['c','a','b']]"],
        ["a,b,c\nb,c,a\nc,b,a", "b,a,c\na,c,b\nc,b,a", "a,b,c"],
    ),
    "light_puzzles_dataset": (
        'the network is:\n01\n00\n\nButton A controls the lights at ["1", "1"], ["2", "2"]\nButton B '
        'controls the lights at ["1", "2"], ["1", "1"]\n\nRound 1: Button A\n'
        "Round 2: Button B\nRound 3: Button B\n",
        {"solution": [1, 1, 0, 1]},
        ["1,1,0,1", "[[1, 1], [0, 1]]"],
        ["1,1,0,0", "0,1,0,0", "1,1,0", "1101"],
    ),
    "logic_puzzle_dataset": (
        "you must select 4 different numbers. The product of each row and column of the selected number must "
        "be greater than 0.\nUsing the number 2 in the square (0,2) as the first selected number\n"
        "1, 5, 2\n-1, -2, 4\n-3, 3, 6\n\nReturn",
        {"solution": [[0, 2], [1, 0], [1, 1], [2, 2]]},  # column 0 is negative
        ["0 2, 2 2, 1 2, 0 1", "[[0, 2], [0, 1], [0, 0], [2, 1]]"],
        [
            "0 2, 1 0, 1 1, 2 2",
            "0 1, 1 2, 2 2, 0 0",
            "0 2, 2 2, 1 2",
            "0 2, 2 2, 1 2, 1 2",
            "0 2, 2 2, 1 2, 0 3",
        ],
    ),
    "logical_equation": (
        "There are 4 letters A, B, C, D, each representing one of the numbers 2, 3, 5, 8.\n1. A - C = -3\n"
        "2. B > A\n3. D = 1.5A\n4. A + D = 5\n\nReturn",
        [2, 8, 5, 3],
        ["[2, 8, 5, 3]", "2 8 5 3"],
        ["[2, 5, 8, 3]", "[2, 8, 5]", "[2, 8, 5, 2]", "A=2"],
    ),
    "mahjong_pattern_dataset": (
        'the result is "Peng".\nthe result is determined as "Chi," number 2.\n'
        "Given the initial cards:ABBXX\n\nRound 1: Add a X card and remove a X card.\n"
        "Round 2: Add a C card\n",
        {"solution": 0},  # the sorted hand ABBC hides A B C from the program that made the published answers
        ["2", "[2]"],
        ["0", "1", "Chi or Peng"],
    ),
    "matrix_transformation_dataset": (
        "rotate this matrix 90 degrees clockwise.\nIf the matrix is \n* #\n& a\n@ 1.\nWhat is the result?",
        {"formatted_solution": "@,&,*,1,a,#"},
        ["@,&,*,1,a,#", "[['@', '&', '*'], ['1', 'a', '#']]", "@ & *\n1 a #"],
        ["@,&,*,1,A,#", "*,&,@,#,a,1", "@,&,*,1,a"],
    ),
    "new_operator_dataset": (
        "Define a$b to be (a + b)/b.\nLet a and b be numbers. Define a&b to be 2*a+3*b.\n"
        "Calculate (3$4)&5&1.\n",
        {"solution": 18.5},  # the first operator alone
        ["40", "40.0", "80/2"],  # 3$4 = 7/4; 7/4&5 = 37/2; 37/2&1 = 40
        ["18.5", "39", "41", "40 or 41"],
    ),
    "pattern_recognition": (
        "squares with a length of at least 3\n\nA A A B\nA A A B\nA A A C\nD E F G\n\n",
        {"row": 2, "column": 2},
        ["[2, 2]", "2,2", "(2, 2)"],
        ["[2, 3]", "[0, 0]", "[3, 3]", "2"],
    ),
    "permutations_and_combinations": (
        "books labeled A, B, C, D on a shelf\n1. Book A must be placed in position 2.\n2. Book B cannot be "
        "placed in position 1.\n3. Book C must be to the left of book A.\n4. Book D must be adjacent to book "
        "B.\n\nGo",
        {"correct_solution": ["C", "A", "B", "D"]},
        ['["C", "A", "B", "D"]', "C, A, D, B"],
        ["D, A, C, B", "A, C, B, D", "C, A, B", "C, A, B, B"],
    ),
    "pooling_dataset": (
        "perform average pooling on the matrix by using a 2*2 sliding window:\n"
        "-1, 7, 20\n6, 16, -4\n9, 13, 7\n",
        {"solution": [[7.0, 9.75], [11.0, 8.0]]},
        ["7, 9.75, 11, 8", "[[7.0, 39/4], [11.0, 8.0]]"],
        ["7, 9.7, 11, 8", "7, 9, 11, 8", "7, 9.75, 11", "16, 20, 16, 16"],
    ),
    "reversi_dataset": (
        "Given: n=4, you play black chess.\n\nThe previous round:\n****\n*10*\n*01*\n****\n\n"
        "Round 1: Your's landing position is (2,1)\nRound 2: The opponent's landing position is (1,1)\n"
        "Round 3: Your's landing position is (2,2)\n",  # the last one is taken
        {"solution": "1,*,*,*,0,1,0,*,*,0,1,*,*,*,*,*"},
        ["1,*,*,*,0,1,0,*,*,0,1,*,*,*,*,*", "[['1','*','*','*'],['0','1','0','*'],['*','0','1','*'],'****']"],
        ["1,*,*,*,0,0,0,*,*,0,1,*,*,*,*,*", "*,*,*,*,0,0,0,*,*,0,1,*,*,*,*,*", "1,*,*"],
    ),
    "standard_sudoku": (
        "Fill it.\n"
        + "\n".join(
            ",".join(" " if c > 6 or r == 8 else str((3 * r + r // 3 + c) % 9 + 1) for c in range(9))
            for r in range(9)
        )
        + "\n\nReturn",
        {"solution": [[(3 * r + r // 3 + c) % 9 + 1 for c in range(9)] for r in range(9)]},
        ["\n".join(",".join(str((3 * r + r // 3 + c) % 9 + 1) for c in range(9)) for r in range(9))],
        ["\n".join(",".join(str((3 * r + r // 3 + 8 - c) % 9 + 1) for c in range(9)) for r in range(9)), "1"],
    ),
    "statistical_counting_dataset": (
        "1. If there are two or more consecutive A's, add 1\n"
        "2. If there are two or more consecutive B's, add 2\n"
        "What is the total score of the string BBAABBBAB?\n",
        {"solution": 5},
        ["5", "[5]"],
        ["4", "7", "3", "A"],
    ),
    "string_deletion_and_modification": (
        "1. If the string ends with 'aa', replace it with 'cc'.",
        {"final_string": "bbca"},
        ['"bbca"', "bbca"],
        ["bbcA", "bbc", "bbcaa"],
    ),
    "string_insertion": (
        "1. If there is a substring ABCD in the string, insert the character A after\n2. If there is a "
        "substring BCDE in the string, insert the character B after\nGiven the string ABCDEABCD, what",
        {"modified_string": "ABCDAEBABCDA"},
        ["ABCDAEBABCDA", '"ABCDAEBABCDA"'],
        ["ABCDAEABCDA", "ABCDEABCD", "ABCDAEBABCD"],
    ),
    "string_splitting": (
        "Method 1 ...",
        {"expected_answer": ["0", "0", "1", "2", "0", "13"]},
        ['["0", "0", "1", "2", "0", "13"]', "0 0 1 2 0 13"],
        ['["0", "0", "1", "2", "0", "3"]', "0 0 1 2 0", "0012013"],
    ),
    "string_synthesis": (
        "One [A] ...",
        {"final_counts": [2, 0, 1, 1, 0, 0, 0, 0, 0]},
        ["2 0 1 1 0 0 0 0 0", "201100000", "[2, 0, 1, 1, 0, 0, 0, 0, 0]"],
        ["2 0 1 1 0 0 0 0 1", "20110000", "2011000000"],
    ),
    "synthesis_decomposition_dataset": (
        "as a list showing [remaining_A, remaining_B, obtained_X]. For example",
        {"solution": {"answer": ["1", "0", "0", "2", "0"]}},
        ["[1, 0, 2]", '["1", "0", "2"]'],
        ["[1, 0, 0]", "[1, 0, 0, 2, 0]", "[1, 0, 3]"],
    ),
}


MORE = [  # reader, question, solution.json, right answers, wrong answers: other kinds of the same tasks
    (
        puzzles.mahjong_pattern,  # without the rule of Chi, B C and D are nothing
        "Given the initial cards:ABBDX\n\n"
        "Round 1: Add a C card and remove a X card.\nRound 2: Add a C card\n",
        {"solution": 2},
        ["0"],
        ["1", "2"],
    ),
    (
        puzzles.constrained_linear_arrangement,  # "card 1" is either player's, or mine
        "1. Wood A generates Fire B, Fire B generates Earth C, Earth C generates Metal D, Metal D generates "
        "Water E, Water E generates Wood A.\n2. Wood A overcomes Earth C, Earth C overcomes Water E, Water E "
        "overcomes Fire B, Fire B overcomes Metal D, Metal D overcomes Wood A.\n"
        "Round 1: B, loss.\nRound 2: C, draw.\n",
        {"solution": ["C", "B"]},
        ["C, B", "E, C"],
        ["C, C", "D, C", "E, B", "B, C", "C, D"],
    ),
    (
        puzzles.constrained_linear_arrangement,
        "ranked from largest to smallest: Elephant (A), Lion (B), and Mouse (C). The Mouse can capture the "
        "Elephant\nRound 1: A, loss.\nRound 2: C, loss.\nRound 3: A, draw.\n",
        {"solution": ["C", "B", "A"]},
        ["C, B, A"],
        ["B, C, A", "C, A, A", "C, B, B"],
    ),
    (
        puzzles.pooling,
        "perform max pooling by using a 1*1 sliding window:\n-1, 7\n6, 16\n",
        {"solution": [[-1, 7], [6, 16]]},
        ["-1, 7, 6, 16"],
        ["1, 7, 6, 16", "7, 16"],
    ),
    (
        puzzles.logic_puzzle,
        "you must select 2 different numbers. The sum of the selected numbers in each row and each column "
        "should be less than or equal to 4.\nthe number 2 in the square (0,1) as the first selected number\n"
        "3, 2\n1, 3\n",
        {"solution": [[0, 1], [1, 0]]},
        ["0 1, 1 0"],
        ["0 1, 0 0", "0 1, 1 1", "1 0, 0 0"],
    ),
    (
        puzzles.pattern_recognition,  # a wall of equal letters: each of its largest squares
        "squares with a length of at least 2\n\nA A A\nA A A\nB C D\n",
        {"row": 1, "column": 1},
        ["[1, 1]", "[1, 2]"],
        ["[0, 1]", "[2, 2]"],
    ),
]


@pytest.mark.parametrize(("reader", "question", "solution", "right", "wrong"), MORE)
def test_other_kinds_of_questions(reader, question: str, solution: object, right: list, wrong: list) -> None:
    sample = reader(question, solution)
    assert [a for a in right if not sample.grade(a).correct] == []
    assert [a for a in wrong if sample.grade(a).correct] == []


BOXES = {"0.5_0.5": ["box_red"], "0.5_1.5": ["target_red", "box_blue", "target_blue"], "1.5_0.5": []}
COMES = '"Agent[0.5, 0.5]": "move(box_red, square[0.5, 1.5])"'
RED, BLUE = (f'"Agent[0.5, 1.5]": "move(box_{c}, target_{c})"' for c in ("red", "blue"))
GRID = {"grid": {"rows": 2, "cols": 3}, "obstacles": ["C1,2"], "goals": ["C1,3"], "initial_robot": "C1,1"}
STACKS = "Initial State:\nstack1: \nstack2: B A\nstack3: \n\nGoal State:\nstack1: \nstack2: A B\n"
DATA = {  # a file -> its text, right answers, wrong answers
    "Blocksworld_dataset/2_3_2_0/blocksworld_task.txt": (
        STACKS,
        ["Move A from 2 to 1\nMove B from 2 to 3\nMove A from 1 to 2\nMove B from 3 to 2"]
        + ["Move A from stack2 to stack1\nMove B from 2 to 3\nMove A from stack 1 to 2\nMove B from 3 to 2"],
        [
            "Move B from 2 to 1",
            "Move A from 2 to 1\nMove B from 2 to 3\nMove B from 3 to 2",
            "",
            "stack2: A B",
        ],
    ),
    "BoxLift_dataset/BoxLift_4_2/BoxLift0/BoxLift.json": (
        json.dumps({"boxes": [50, 30, 20, 20], "lifters": [30, 25]}),
        ["Step 1: [(50, [0, 1])]\nStep 2: [(30, [0]), (20, [1])]\nStep 3: [(20, [0])]"],
        ["Step 1: [(50, [0, 1])]\nStep 2: [(30, [1]), (20, [0])]\nStep 3: [(20, [0])]"]
        + ["Step 1: [(50, [0, 1])]\nStep 2: [(30, [0]), (20, [1])]"]
        + ["Step 1: [(50, [0, 1])]\nStep 2: [(30, [0])]\nStep 3: [(20, [0])]\nStep 4: [(20, [0])]"],
    ),
    "BoxNet1_dataset/env_pg_state_1_2/pg_state0/pg_state0.json": (
        json.dumps(BOXES),
        [f"[{{{COMES}, {BLUE}}}, {{{RED}}}]", f"[{{{BLUE}}}, {{{COMES}}}, {{{RED}}}]"],
        [
            f"[{{{COMES}, {RED}}}, {{{BLUE}}}]",
            f"[{{{COMES}}}, {{{RED}}}]",
            f"[{{{COMES}}}, {{{RED}, {BLUE}}}]",
        ]
        + [f"[{{{COMES}, {BLUE}}}, {{{RED}}}] done", "[]", f"[{{{BLUE}}}, {{{RED}}}]"]
        + [f"[{{{COMES.replace('0.5, 1.5', '1.5, 1.5')}, {BLUE}}}, {{{RED}}}]"],
    ),
    "GridWorld1_dataset/gridworld_sample_2x3_1.json": (
        json.dumps(GRID),
        ['["C1,1", "C2,1", "C2,2", "C2,3", "C1,3"]', "[C1,1, C2,1, C2,2, C2,3, C1,3]"],
        ['["C1,1", "C1,2", "C1,3"]', '["C1,1", "C2,1", "C2,3", "C1,3"]', '["C2,1", "C2,2", "C2,3", "C1,3"]']
        + ['["C1,1", "C2,1", "C2,2"]', "[(0, 0), (1, 0), (1, 1), (1, 2), (0, 2)]"],
    ),
    "Letters/Letters_dataset_min_length_5_max_length_10/a_2_0/test_words.json": (
        '"banda"',
        ["Count: 2, Positions: [2, 5]"],
        ["Count: 2, Positions: [1, 4]", "Count: 1, Positions: [2]", "2"],
    ),
    "MATH/train/geometry/7.json": (
        json.dumps({"problem": "How long?", "solution": "Not \\boxed{3} but \\boxed{\\frac{1}{2}}."}),
        ["1/2", "\\frac12", "0.5"],
        ["3", "2", "1/3"],
    ),
    "MATH/train/counting_and_probability/7.json": (
        json.dumps({"problem": "How many?", "solution": "So $\\boxed{56}$."}),
        ["56", "56.0"],
        ["65", "5"],
    ),
    "game24_dataset/24/24.csv": (
        "Rank,Puzzles,Solved rate\n1,1 1 4 6,99%\n",
        ["4 * 6 * 1 * 1", "(4 * 6) / (1 * 1) = 24"],
        ["4 * 6", "4 * 6 + 1 - 1 + 1", "24", "1 + 1 + 4 * 6"],
    ),
    "gsmhardv2.jsonl": (
        json.dumps({"input": "What each?", "code": "", "target": 4933828.333333333}),
        ["4933828.333333333", "4933828.33", "$4,933,828.33"],
        ["4933828", "4933828.3", "4933828.34", "4933829.33"],
    ),
    "number_multiply/digit_1_2/sample_0/input_prompt_1.txt": (
        "What is the result of -9*43*-7?",
        ["2709", "2,709"],
        ["-2709", "2708", "-9*43*-7"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of our own for every task."""
    root = tmp_path_factory.mktemp("published")
    for name, (question, solution, *_) in ASKED.items():
        sample = root / name / "sample_0"
        sample.mkdir(parents=True)
        (sample / "question.txt").write_text(question)
        (sample / "solution.json").write_text("\ufeff" * (name == "reversi_dataset") + json.dumps(solution))
    for name, (text, *_) in DATA.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "number_multiply/digit_1_2/sample_0/target_answer.txt").write_text("2709")
    return root


@pytest.mark.parametrize("name", TABLE)
def test_right_answers_are_taken_and_wrong_ones_refused(name: str, folder: Path) -> None:
    place = TABLE[name].folder
    data = next((held for file, held in DATA.items() if file.startswith(place)), None)
    right, wrong = data[1:] if data else ASKED[place][2:]
    use_symbench(str(folder))
    task = get(name)
    problem = task.problem(0)
    assert task.size == 1 and len(right) and len(wrong) > 1 and task.solution(problem) is None
    assert data or problem.question == ASKED[place][0]
    for answer in right:
        assert task.grade(problem, answer).correct, (answer, task.grade(problem, answer).detail)
    for answer in [*wrong, None, "I do not know", "9" * 5000, "[" * 5000, "{" * 500]:
        assert not task.grade(problem, answer).correct, answer


def test_training_goes_on_with_generated_questions(folder: Path) -> None:
    before = get("reversi").problem(RL_START)
    use_symbench(str(folder))
    task = get("reversi")
    assert task.problem(RL_START) == before and task.grade(before, str(before.answer)).correct
    assert task.solution(before) is not None
    with pytest.raises(UsageError, match="reversi has 1 published questions; 1 was asked"):
        task.problem(1)
    use_symbench(None)
    assert get("reversi").size is None
    assert len(evaluate.questions(["reversi", "game24"], 5)) == 5, "generated again"


def test_the_commands_ask_published_questions(folder: Path) -> None:
    cfg = evaluate.Config(
        tasks="game24,reversi", symbench=str(folder), questions=4, max_tokens=4, sandbox="none"
    )
    asked = evaluate.run(cfg, World())["questions"]
    assert [q["task"] for q in asked] == ["game24", "reversi"], "as many as are published"
    question, _, right, wrong = ASKED["reversi_dataset"]
    options = command.Config(symbench=str(folder))
    assert question in next(command.run(["show", "reversi"], options))
    grades = [next(command.run(["grade", "reversi", answer], options)) for answer in (right[0], wrong[0])]
    assert grades[0] == "right" and grades[1].startswith("wrong: ")


def test_all_samples_are_asked_in_an_order_drawn_once(tmp_path: Path) -> None:
    folder = tmp_path / "string_splitting"
    for i in range(12):
        (folder / f"sample_{i}").mkdir(parents=True)
        (folder / f"sample_{i}" / "question.txt").write_text(f"Question {i}")
        (folder / f"sample_{i}" / "solution.json").write_text(json.dumps({"expected_answer": [str(i)]}))
    orders = []
    for _ in range(2):
        use_symbench(str(tmp_path))
        orders.append([p.question for p in evaluate.questions(["string_splitting"], 20)])
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0]) == sorted(f"Question {i}" for i in range(12))
    problem = get("string_splitting").problem(3)
    assert Path(problem.meta["path"]).parent.name == problem.question.replace("Question ", "sample_")


GOLD = {"solution": [[1]]}


@pytest.mark.parametrize(
    ("place", "question", "solution", "says"),
    [
        ("2048_dataset", "move the number", GOLD, "start and moves"),
        ("2048_dataset", "position (3, 1) using the sequence 'u':\n1, 2\n2, 1\n", GOLD, "not on the board"),
        ("pooling_dataset", "perform odd pooling", GOLD, "kind of pooling"),
        ("pooling_dataset", "perform max pooling: 2*2 sliding window\n1, 2\n3, 4, 5\n", GOLD, "2, 3 cells"),
        (
            "reversi_dataset",
            "you play black.\n**\n**\nYour's landing position is (3,1)",
            GOLD,
            "not on the board",
        ),
        ("light_puzzles_dataset", "01\n00\nButton A controls the lights at [3, 1]\n", GOLD, "outside"),
        (
            "logical_equation",
            "There are 2 letters A, B, each one of the numbers 1, 2.\n1. C > A",
            [1, 2],
            "C > A",
        ),
        ("permutations_and_combinations", "books labeled A, B on a shelf\n1. Book A is red.\n", {}, "is red"),
        ("new_operator_dataset", "Define a#b to be a**b.\nCalculate 2#3.\n", GOLD, "no formula"),
        ("new_operator_dataset", "Define a#b to be a*b.\nCalculate 2#3@4.\n", GOLD, "'@'"),
        ("matrix_transformation_dataset", "Mirror this matrix", GOLD, "rotation"),
        (
            "synthesis_decomposition_dataset",
            "list showing [left_Q]",
            {"solution": {"answer": [*"12345"]}},
            "left_Q",
        ),
        ("constrained_linear_arrangement", "Round 1: A, win.\n", {"solution": ["B"]}, "no game"),
        ("cryptanalysis", "What?", {"key": 1}, "KeyError 'answer'"),
        ("string_synthesis", "What?", [], "TypeError"),
        ("string_synthesis", "What?", {"final_counts": []}, "an empty answer"),
        ("cryptanalysis", " \n", {"answer": ["1"]}, "an empty question"),
    ],
)
def test_a_sample_that_is_not_understood_is_refused(
    tmp_path: Path, place: str, question: str, solution: object, says: str
) -> None:
    sample = tmp_path / place / "sample_7"
    sample.mkdir(parents=True)
    (sample / "question.txt").write_text(question)
    (sample / "solution.json").write_text(json.dumps(solution))
    use_symbench(str(tmp_path))
    with pytest.raises(UsageError) as error:
        evaluate.questions([place.removesuffix("_dataset")], 1)
    line = str(error.value)
    assert str(sample / "question.txt") in line and says in line and "\n" not in line


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("Blocksworld_dataset/a/b.txt", STACKS.replace("A B", "A C"), "different blocks"),
        ("Blocksworld_dataset/a/b.txt", "stack1: A", "Initial State"),
        ("BoxLift_dataset/a/b.json", '{"boxes": [90], "lifters": [40, 40]}', "too heavy"),
        ("BoxLift_dataset/a/b.json", "{", "expected JSON"),
        ("BoxNet1_dataset/a.json", '{"0.5_0.5": ["box_red"]}', "more box_red than targets"),
        ("GridWorld1_dataset/a.json", json.dumps(GRID | {"goals": ["C3,1"]}), "outside"),
        ("Letters/word/test_words.json", '"banda"', "a_1_0"),
        ("game24_dataset/24/24.csv", "Rank,Puzzles\n1,1 2 3\n", "four numbers"),
        ("gsmhardv2.jsonl", '{"input": "What?"}', "KeyError"),
        ("gsmhardv2.jsonl", "[[", "line 1"),
        ("MATH/train/geometry/1.json", '{"problem": "What?", "solution": "3"}', "boxed"),
        ("standard_sudoku/sample_0/question.txt", "no grid", "solution.json"),
        ("gsmhardv2.jsonl", '{"input": 7, "target": 7}', "no attribute 'strip'"),
        ("string_splitting/readme.md", "", "no samples"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, file: str, text: str, says: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    use_symbench(str(tmp_path))
    name = next(n for n, layout in TABLE.items() if file.startswith(layout.folder))
    with pytest.raises(UsageError) as error:
        evaluate.questions([name], 1)
    assert says in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_folders_without_the_benchmark_are_refused_and_absent_tasks_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match="no such folder|eight_queens_dataset"):
            use_symbench(str(folder))
    (tmp_path / "reversi").mkdir()
    use_symbench(str(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert "game24" in line and "reversi" not in line and "generated" in line


def test_a_folder_of_mathematics_is_a_task(folder: Path, tmp_path: Path) -> None:
    task = get(str(folder / "MATH" / "train"))
    assert (task.suite, task.size) == ("math", 2)
    assert {task.problem(i).question for i in range(2)} == {"How long?", "How many?"}
    problem = task.problem(3)
    assert task.grade(problem, problem.answer).correct and not task.grade(problem, "9").correct
    with pytest.raises(UsageError, match="no JSON files"):
        get(f"{tmp_path}/")


def test_evaluation_asks_a_folders_different_questions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i, text in enumerate(["How many?", "How long?", "How many?"]):
        (tmp_path / f"{i}.json").write_text(json.dumps({"problem": text, "solution": "\\boxed{5}"}))
    cfg = evaluate.Config(tasks=f"{tmp_path}/", questions=5, max_tokens=4, sandbox="none")
    asked = evaluate.run(cfg, World("cpu"))["questions"]
    assert [(q["task"], q["index"]) for q in asked] == [(f"{tmp_path}/", 0), (f"{tmp_path}/", 1)]
    assert "2 of its 2 different questions (3 rows) are asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "end", ["$\\boxed{5}$.", "$\\fbox{5}$", "$\\boxed 5$ cm.", "so \\boxed {5}.", "\\boxed 5."]
)
def test_the_box_of_a_solution_is_written_in_several_ways(end: str) -> None:
    record = {"problem": "How many?", "solution": f"Not \\boxed{{3}} but {end}"}
    assert plans.mathematics(Path("1.json"), record).answer == "5"


# -- the published samples ---------------------------------------------------------------------------

# published answers of these tasks contradict their questions now and then: docs/data.md says how
CONTRADICTED = {"logic_puzzle", "mahjong_pattern", "new_operator"}
ONE_ANSWER = set(TABLE) - {"constrained_linear_arrangement", "eight_queens", "letter_logic_diagram"}
ONE_ANSWER -= {
    "logic_puzzle",
    "permutations_and_combinations",
    "combinatorial_calculation",
    "logical_equation",
}


def published(name: str) -> list[tuple[Path, Sample]]:
    if not OFFICIAL.is_dir():
        pytest.skip("set ABACUS_SYMBENCH to the folder of SymBench as published (docs/data.md)")
    use_symbench(str(OFFICIAL))
    return get(name).samples


@pytest.mark.parametrize("name", TABLE)
def test_graders_on_all_published_samples(name: str) -> None:
    """The published answer is right; one of its digits or letters changed, it is wrong."""
    samples = published(name)
    refused = [str(path) for path, s in samples if s.gold is not None and not s.grade(s.gold).correct]
    assert not refused or name in CONTRADICTED, refused
    for path, sample in samples:
        for answer in (None, "none of these", sample.question):
            assert not sample.grade(answer).correct, (path, answer)
        if sample.gold is None or str(path) in refused or name not in ONE_ANSWER:
            continue
        for mark in re.finditer(r"[0-9A-Za-z*]", sample.gold if "\\" not in sample.gold else ""):
            other = "7" if mark[0] != "7" else "3"
            changed = sample.gold[: mark.start()] + other + sample.gold[mark.end() :]
            assert close(changed, sample.gold) or not sample.grade(changed).correct, (path, changed)


def close(a: str, b: str) -> bool:
    """Whether two lists of numbers differ by no more than a decimal that was cut."""
    with contextlib.suppress(ValueError):
        return all(abs(float(x) - float(y)) <= 1e-6 for x, y in zip(a.split(","), b.split(","), strict=True))
    return False


def plan(name: str, path: Path, question: str) -> str:
    """An answer to a published sample without one, by our reference program or, for boxnet, box by box."""
    record = json.loads(path.read_text()) if path.suffix == ".json" else None
    if name == "boxnet":
        return json.dumps(list(brought(record)))
    if name == "game24":
        meta = {
            "numbers": list(map(int, question.split(":")[0].removeprefix("Make 24 from the numbers").split()))
        }
    elif name == "gridworld":
        marks = {cell: "#" for cell in record["obstacles"]} | {cell: "G" for cell in record["goals"]}
        marks[record["initial_robot"]] = "S"
        rows, columns = record["grid"]["rows"], record["grid"]["cols"]
        meta = {
            "grid": [
                "".join(marks.get(f"C{r + 1},{c + 1}", ".") for c in range(columns)) for r in range(rows)
            ]
        }
    elif name == "blocksworld":
        stacks = [line.split(":")[1].replace(" ", "") for line in question.split("\n") if line[:5] == "stack"]
        meta = {"start": tuple(stacks[: len(stacks) // 2]), "goal": tuple(stacks[len(stacks) // 2 :])}
    else:
        meta = record
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(puzzles.OURS[name].solution(Problem(name, 0, "", None, meta)), {})
    if name == "gridworld":
        return re.sub(r"\((\d+), (\d+)\)", lambda m: f"C{int(m[1]) + 1},{int(m[2]) + 1}", out.getvalue())
    return out.getvalue()


def brought(squares: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """Steps in which one box after the other goes to a free target, along its row first."""
    places = [
        (tuple(float(x) for x in square.split("_")), t) for square, things in squares.items() for t in things
    ]
    targets = [(place, thing) for place, thing in places if thing.startswith("target")]
    for place, box in [(p, t) for p, t in places if t.startswith("box")]:
        goal = next((p, t) for p, t in sorted(targets, key=lambda t: t[0] != place) if t[7:] == box[4:])
        targets.remove(goal)
        (r, c), (to_r, to_c) = place, goal[0]
        way = [(r, c)]
        while (r, c) != (to_r, to_c):
            c, r = (c + (1 if to_c > c else -1), r) if c != to_c else (c, r + (1 if to_r > r else -1))
            way.append((r, c))
        for (a, b), (d, e) in itertools.pairwise(way):
            yield {f"Agent[{a}, {b}]": f"move({box}, square[{d}, {e}])"}
        yield {f"Agent[{r}, {c}]": f"move({box}, {goal[1]})"}


@pytest.mark.parametrize("name", ["blocksworld", "boxlift", "boxnet", "game24", "gridworld"])
def test_published_samples_without_an_answer_can_be_solved(name: str) -> None:
    """Plans of other programs are right."""
    taken = 0
    for path, sample in published(name)[:40]:
        answer = plan(name, path, sample.question)
        taken += sample.grade(answer).correct
    greedy = name == "boxlift"  # our greedy plan may need more steps than the benchmark's
    assert taken == len(published(name)[:40]) or (greedy and taken), f"{taken} solved"
    assert not greedy or plans.greedy_steps([50, 30, 20, 20], [30, 25]) == 3
