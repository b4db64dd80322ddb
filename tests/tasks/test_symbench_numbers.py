"""The tasks of symbench_numbers: brute force over the question's text, and small cases worked by hand."""

import io
import itertools
import re
from contextlib import redirect_stdout
from fractions import Fraction

import pytest

from tasks import Problem
from tasks.symbench_numbers import TASKS, evaluate, expression_tokens, placements


def output(program: str) -> str:
    """What a program prints, in this process."""
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "<program>", "exec"), {})
    return out.getvalue().strip()


def by_hand(name: str, **meta) -> str:
    """What the reference program prints for data that are not of any question."""
    return output(TASKS[name].solution(Problem(name, 0, "", None, meta)))


def rules(question: str) -> list[str]:
    return re.findall("^- (.*)$", question, re.MULTILINE)


# ---- permutations_and_combinations

TOLD = {
    r"(\w) is at position (\d)": lambda order, a, k: order[int(k) - 1] == a,
    r"(\w) is not at position (\d)": lambda order, a, k: order[int(k) - 1 : int(k)] != a,
    r"(\w) is somewhere to the left of (\w)": lambda order, a, b: b in order.partition(a)[2],
    r"(\w) is directly to the left of (\w)": lambda order, a, b: a + b in order,
    r"(\w) and (\w) are next to each other": lambda order, a, b: a + b in order or b + a in order,
    r"(\w) and (\w) are not next to each other": lambda order, a, b: (
        a + b not in order and b + a not in order
    ),
    r"the number of others between (\w) and (\w) is exactly (\d)": lambda order, a, b, k: (
        re.search(f"{a}.{{{k}}}{b}|{b}.{{{k}}}{a}", order) is not None
    ),
    r"(\w) is at one of the two ends": lambda order, a: a in (order[0], order[-1]),
}


def test_permutations_by_brute_force() -> None:
    """Every order is graded as the sentences of the question, read anew, say; all sentences occur."""
    task, met = TASKS["permutations_and_combinations"], set()
    small = [p for p in map(task.problem, range(60)) if len(p.meta["items"]) <= 6]
    assert len(small) >= 15
    for problem in small[:15]:
        found = []
        for rule in rules(problem.question):
            pattern = next(p for p in TOLD if re.fullmatch(p, rule))
            met.add(pattern)
            found.append((TOLD[pattern], re.fullmatch(pattern, rule).groups()))
        right = 0
        for order in map("".join, itertools.permutations(problem.meta["items"])):
            holds = all(check(order, *groups) for check, groups in found)
            assert task.grade(problem, ", ".join(order)).correct == holds, (problem, order)
            right += holds
        assert right >= 1
    assert met == set(TOLD)


# ---- logical_equation


def test_logical_equations_by_brute_force() -> None:
    """Every assignment is graded as the equations of the text, evaluated by Python, say."""
    task, kinds = TASKS["logical_equation"], set()
    small = [p for p in map(task.problem, range(80)) if len(p.meta["names"]) <= 4]
    assert len(small) >= 15
    for problem in small[:15]:
        text = problem.question
        names = re.search("The letters (.*?) stand", text)[1].split(", ")
        values = [int(v) for v in re.search(r"out of \[(.*?)\]", text)[1].split(", ")]
        distinct = "Different letters stand for different numbers" in text
        kinds.add(distinct)
        condition = compile(" and ".join(r.replace("=", "==") for r in rules(text)), "rules", "eval")
        candidates = [*itertools.product(values, repeat=len(names)), [v + 1 for v in problem.answer]]
        for given in candidates:
            holds = eval(condition, dict(zip(names, given, strict=True))) and set(given) <= set(values)
            holds = holds and (not distinct or len(set(given)) == len(given))
            assert task.grade(problem, str(list(given))).correct == holds, (problem, given)
    assert kinds == {True, False}


def test_values_that_are_not_on_offer_are_refused() -> None:
    task = TASKS["logical_equation"]
    rules = [[[[1, "A"], [1, "B"]], "=", 5]]
    meta = {"names": ["A", "B"], "values": [1, 2, 4], "distinct": True, "rules": rules}
    problem = Problem(task.name, 0, "", [1, 4], meta)
    assert task.grade(problem, "1, 4").correct and task.grade(problem, "4 1").correct
    for wrong in ("2, 3", "0, 5", "-1, 6", "1, 2", "1, 4, 2"):
        assert not task.grade(problem, wrong).correct, wrong


# ---- combinatorial_calculation

SHAPES = (
    "((a{}b){}c){}d",
    "(a{}(b{}c)){}d",
    "(a{}b){}(c{}d)",
    "a{}((b{}c){}d)",
    "a{}(b{}(c{}d))",
    "a{}b{}c{}d",
)


def value(expression: str) -> Fraction | None:
    try:
        return eval(re.sub("([0-9]+)", r"Fraction(\1)", expression), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


def test_expressions_by_brute_force() -> None:
    """Every expression of four numbers is graded as Python's exact arithmetic says."""
    task = TASKS["combinatorial_calculation"]
    small = [p for p in map(task.problem, range(60)) if len(p.meta["numbers"]) == 4]
    for problem in small[:6]:
        numbers, target = (
            re.search("numbers (.*?), keeping", problem.question)[1].split(", "),
            problem.question,
        )
        target = int(re.search(r"exactly (\d+)\.", target)[1])
        right = 0
        for shape, signs in itertools.product(SHAPES, itertools.product("+-*/", repeat=3)):
            letters = dict(zip("abcd", numbers, strict=True))
            text = re.sub("[abcd]", lambda m, letters=letters: letters[m[0]], shape.format(*signs))
            grade = task.grade(problem, f"[{', '.join(re.findall('[0-9]+|.', text))}]")
            assert grade.correct == (value(text) == target), (problem, text)
            right += grade.correct
        assert right >= 1


@pytest.mark.parametrize(
    "text", ["1 - 2 - 3", "2 * 3 + 4", "2 + 3 * 4", "8 / 4 / 2", "8 / (4 / 2)", "1 / 3 * 3"]
)
def test_precedence_is_that_of_python(text: str) -> None:
    assert evaluate(expression_tokens(text)) == value(text)


@pytest.mark.parametrize(
    "text", ["1 2", "-1", "1 +", "(1", "1)", ")(", "()", "1 ) + ( 2", "2(3)", "1 / (2 - 2)", "+"]
)
def test_texts_that_are_no_expression(text: str) -> None:
    assert evaluate(expression_tokens(text)) is None


@pytest.mark.parametrize(
    "text", ["", None, "1 ** 2 x", "a", "1.5 + 2", "1 + 2 = 3", "1 + " * 500 + "1", "[1 + 2] [3]"]
)
def test_texts_that_hold_more_than_an_expression(text: str | None) -> None:
    assert expression_tokens(text) is None


def test_numbers_must_keep_their_order_and_their_number() -> None:
    task = TASKS["combinatorial_calculation"]
    problem = Problem(task.name, 0, "", "[1, +, 2, *, 3]", {"numbers": [1, 2, 3], "target": 7})
    assert task.grade(problem, "1 + 2 \u00d7 3").correct and task.grade(problem, "[1+(2*3)]").correct
    for wrong in ("3 * 2 + 1", "1 + 6", "1 + 2 * 3 + 0", "1 * 2 + 3", "7"):
        assert not task.grade(problem, wrong).correct, wrong


# ---- eight_queens


def test_the_92_placements_are_those_of_brute_force() -> None:
    def safe(columns: tuple[int, ...]) -> bool:
        return all(abs(a - b) != j - i for (i, a), (j, b) in itertools.combinations(enumerate(columns), 2))

    assert sorted(placements()) == [p for p in itertools.permutations(range(8)) if safe(p)]
    assert len(placements()) == 92


def test_queens_are_graded_as_the_text_says() -> None:
    """All 92 placements and all that differ from the answer in one queen, for 8 questions."""
    task = TASKS["eight_queens"]
    for problem in map(task.problem, range(8)):
        standing, blocked = (
            set(re.findall(r"\d \d", line))
            for line in re.findall(r"^(?:Queens|Squares).*: (.*)\.$", problem.question, re.M)
        )
        assert len(standing) == len(problem.meta["queens"]) and len(blocked) == len(problem.meta["blocked"])
        answer = problem.answer.split(", ")
        right = [{f"{r} {c}" for r, c in enumerate(columns)} for columns in placements()]
        candidates = [sorted(board) for board in right]
        candidates += [
            answer[:i] + [f"{r} {c}"] + answer[i + 1 :] for i in range(8) for r in range(9) for c in range(9)
        ]
        for given in candidates:
            holds = (
                set(given) in right
                and len(given) == 8
                and standing <= set(given)
                and not blocked & set(given)
            )
            assert task.grade(problem, ", ".join(given)).correct == holds, (problem, given)


# ---- the others: exact answers


def test_operators_are_evaluated_by_python_as_well() -> None:
    """The definitions of the text, read anew: each innermost a @ b is replaced by its value."""
    task, forms = TASKS["new_operator"], set()
    for problem in map(task.problem, range(150)):
        definitions = dict(re.findall(r"^- a (.) b = (.*)$", problem.question, re.MULTILINE))
        forms |= {"if" in d for d in definitions.values()} | {"/" in d for d in definitions.values()}
        text = "(" + re.search(r"value of (.*)\? Give", problem.question)[1] + ")"
        number = r"(-?\d+(?:/\d+)?)"
        while inner := re.search(rf"\({number} ([@#&]) {number}\)", text):
            a, b = Fraction(inner[1]), Fraction(inner[3])
            text = text.replace(inner[0], str(Fraction(eval(definitions[inner[2]], {"a": a, "b": b}))))
        assert Fraction(text) == Fraction(problem.answer)
        assert not task.grade(problem, str(Fraction(text) + Fraction(1, 2))).correct
    assert forms == {True, False}


def test_points_of_mahjong_by_hand() -> None:
    def score(hand: str, *rounds: str) -> int:
        return int(by_hand("mahjong_pattern", hand=list(hand), rounds=[tuple(r) for r in rounds]))

    assert score("AAABCDE", "AB") == 5, "three A: kong"
    assert score("AABCDE", "AB") == 3, "two A: peng goes before chi"
    assert score("ABXYZ", "CA") == score("ACXYZ", "BA") == score("BCXYZ", "AX") == 1, "chi in every place"
    assert score("ABXYZ", "DA") == score("YZ", "AY") == score("ABB", "AB") == 0, (
        "no gap, no wrap around the alphabet"
    )
    assert score("AAX", "AX", "AA") == 8, "the drawn tile joins the hand: peng, then kong"
    assert score("AAX", "XA", "AX") == 0, "what was discarded is gone"


def test_points_of_counting_by_hand() -> None:
    def count(kind: str, text: str, x: str = "A", w: str = "AB", k: int = 2) -> int:
        return (
            int(by_hand("statistical_counting", text=text, rules=[[kind, 10, {"x": x, "w": w, "k": k}]]))
            // 10
        )

    assert count("letter", "ABCA") == 2
    assert count("double", "AAABB") == 3
    assert count("word", "AAAA", w="AA") == 3, "overlapping"
    assert count("word", "ABAB") == 2
    assert count("inside", "BABAAA") == 2, "A in BAB and AAA, not in BAA; the B of ABA is no A"
    assert count("run", "AAAABAA") == 2 and count("run", "AAAABAA", k=3) == 1
    assert count("odd", "ABABBA") == 2


def test_every_rule_of_counting_is_drawn() -> None:
    task = TASKS["statistical_counting"]
    drawn = {rule[0] for i in range(50) for rule in task.problem(i).meta["rules"]}
    assert drawn == set(task.COUNTS)


def test_synthesis_by_hand() -> None:
    """2 A make 1 B, which can be taken apart into 1 C and 1 A."""
    make, split = ({"A": 2}, {"B": 1}), ({"B": 1}, {"C": 1, "A": 1})
    stock = {"A": 7, "B": 0, "C": 0}
    assert by_hand("synthesis_decomposition", stock=dict(stock), rules=[make], rounds=3) == "[1, 3, 0]"
    assert by_hand("synthesis_decomposition", stock=dict(stock), rules=[make, split], rounds=1) == "[4, 0, 3]"
    assert by_hand("synthesis_decomposition", stock=dict(stock), rules=[make, split], rounds=2) == "[2, 0, 5]"
    assert by_hand("synthesis_decomposition", stock=dict(stock), rules=[split, make], rounds=1) == "[1, 3, 0]"


def test_card_games_by_brute_force() -> None:
    """Every sequence of cards is graded as the text, read anew, says."""
    task, kinds = TASKS["constrained_linear_arrangement"], set()
    small = [
        p for p in map(task.problem, range(200)) if len(p.meta["order"]) ** len(p.meta["results"]) <= 1300
    ]
    assert len(small) >= 20
    for problem in small[:20]:
        text = problem.question
        order = re.search(r"rank (.*?), the strongest", text)[1].split(" > ")
        beats = {pair for pair in itertools.combinations(order, 2)} - {(order[0], order[-1])} | {
            (order[-1], order[0])
        }
        hand = {card: int(n) for n, card in re.findall(r"(\d) x (\w)", text)}
        seen = re.findall(r"opponent plays (\w); (\w+) for you", text)
        no_repeat = "You never play" in text
        kinds.add(no_repeat)
        right = 0
        for played in itertools.product(order, repeat=len(seen)):
            holds = all(played.count(card) <= hand.get(card, 0) for card in order)
            for mine, (other, result) in zip(played, seen, strict=True):
                now = "win" if (mine, other) in beats else "loss" if (other, mine) in beats else "draw"
                holds = holds and now == result
            holds = holds and not (no_repeat and any(a == b for a, b in itertools.pairwise(played)))
            assert task.grade(problem, " ".join(played)).correct == holds, (problem, played)
            right += holds
        assert right >= 1
    assert kinds == {True, False}
