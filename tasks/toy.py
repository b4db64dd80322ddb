"""144 small tasks for the embedded model: list operations in words, and a few facts that need no code.

    Take [72, 16, 29, 53, 87]. Add 4 to each. Keep numbers over 30. Report the sum.

A task is a composition: one or two of ten middle operations, then one of six closing operations. 107 tasks
are for training. 37 tasks occur in no training stage, but each of their operations does: they show whether
the model has learnt operations or only tasks. Each operation has its own words: shared words were the main
cause of wrong programs.

Facts ("France. Name its capital.") are the counterpart. The base model is trained on all of them, and the
evaluation uses phrasings that no training data contains. At the end is the mixture of trajectories that the
base model is trained on.
"""

import itertools
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tasks import PROTOCOLS, RL_START, SFT_START, Grade, Problem, Task, words


@dataclass(frozen=True)
class Operation:
    """One step in words and in code. {k} stands for a number drawn from the range `numbers`. `mistaken` is
    the code that the base model often writes for these words."""

    name: str
    words: str
    code: str
    numbers: tuple[int, int] = (0, 0)
    mistaken: str = ""


MIDDLE = (
    Operation("add", "Add {k} to each.", "x = [v + {k} for v in x]", (2, 99)),
    Operation("times", "Multiply by {k}.", "x = [v * {k} for v in x]", (2, 9)),
    Operation(
        "minus", "Subtract {k}.", "x = [v - {k} for v in x]", (2, 99), mistaken="x = [{k} - v for v in x]"
    ),
    Operation(
        "modulo",
        "Take remainders by {k}.",
        "x = [v % {k} for v in x]",
        (13, 29),
        mistaken="x = [v // {k} for v in x]",
    ),
    Operation(
        "halve", "Halve them, rounding down.", "x = [v // 2 for v in x]", mistaken="x = [v / 2 for v in x]"
    ),
    Operation("over", "Keep numbers over {k}.", "x = [v for v in x if v > {k}]", (10, 60)),
    Operation(
        "under",
        "Drop {k} and higher.",
        "x = [v for v in x if v < {k}]",
        (40, 90),
        mistaken="x = [v for v in x if v > {k}]",
    ),
    Operation("even", "Only even ones.", "x = [v for v in x if v % 2 == 0]"),
    Operation(
        "odd",
        "Odd values stay.",
        "x = [v for v in x if v % 2 == 1]",
        mistaken="x = [v for v in x if v % 2 == 0]",
    ),
    Operation("running", "Running totals.", "x = [sum(x[:i + 1]) for i in range(len(x))]"),
)
CLOSING = (
    Operation(
        "mean", "Give the mean, rounding down.", "print(sum(x) // len(x))", mistaken="print(sum(x) / len(x))"
    ),
    Operation("sum", "Report the sum.", "print(sum(x))"),
    Operation("largest", "Find the largest.", "print(max(x))"),
    Operation("smallest", "Name the smallest.", "print(min(x))"),
    Operation("spread", "State the spread.", "print(max(x) - min(x))", mistaken="print(max(x) + min(x))"),
    Operation("last", "Show the last.", "print(x[-1])", mistaken="print(x[0])"),
)


def apply(name: str, x: list[int], k: int):
    """The result of an operation. The answers come from here, not from the reference programs."""
    simple = {
        "mean": lambda x: math.floor(sum(x) / len(x)),
        "sum": sum,
        "largest": max,
        "smallest": min,
        "last": lambda x: x[-1],
    }
    if name in simple:
        return simple[name](x)
    if name == "spread":
        return max(x) - min(x)
    if name == "running":
        return list(itertools.accumulate(x))
    keep = {"over": lambda v: v > k, "under": lambda v: v < k}
    keep |= {"even": lambda v: not v & 1, "odd": lambda v: bool(v & 1)}
    if name in keep:
        return list(filter(keep[name], x))
    change = {"add": k.__add__, "times": k.__mul__, "minus": lambda v: v - k}
    change |= {"modulo": lambda v: v - k * math.floor(v / k), "halve": lambda v: math.floor(v / 2)}
    return list(map(change[name], x))


class Composition(Task):
    """Operations applied to five numbers, one after the other; the answer is an integer."""

    suite = "toy"
    apart = True

    def __init__(self, operations: tuple[Operation, ...]):
        self.operations = operations
        self.name = "toy_" + "_".join(o.name for o in operations)

    def problem(self, index: int) -> Problem:
        """Five numbers of two digits. They are drawn again until at least two reach the closing operation
        and owner() gives the question to the purpose of this index."""
        rng = random.Random(f"{self.name} {index}")
        while True:
            numbers = [rng.randint(10, 99) for _ in range(5)]
            ks = [rng.randint(*o.numbers) for o in self.operations]
            words = " ".join(o.words.format(k=k) for o, k in zip(self.operations, ks, strict=True))
            question = f"Take {numbers}. {words}"
            x = numbers
            for o, k in zip(self.operations[:-1], ks[:-1], strict=True):
                x = apply(o.name, x, k)
            if len(x) >= 2 and owner(question) == purpose(index):
                answer = apply(self.operations[-1].name, x, 0)
                return Problem(self.name, index, question, answer, {"numbers": numbers, "ks": ks})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        if answer is None:
            return Grade(False, "no answer given")
        try:
            value = int(answer.replace(",", "").strip())
        except ValueError:
            return Grade(False, f"{answer!r} is not an integer")
        return Grade(value == problem.answer, f"{value} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        return self.program(problem, [o.code for o in self.operations])

    def believed(self, problem: Problem, rng: random.Random) -> str:
        """The program of the base model, which mistakes some operations most of the time."""
        mistaken = [o.mistaken and rng.random() < MISTAKEN for o in self.operations]
        return self.program(
            problem, [o.mistaken if m else o.code for o, m in zip(self.operations, mistaken, strict=True)]
        )

    def program(self, problem: Problem, code: list[str]) -> str:
        """One line for the numbers and one per step."""
        steps = [line.format(k=k) for line, k in zip(code, problem.meta["ks"], strict=True)]
        return "\n".join([f"x = {problem.meta['numbers']}", *steps])


def purpose(index: int) -> int:
    """The purpose of an index: 0 evaluation, 1 supervised data, 2 reinforcement learning."""
    return (index >= SFT_START) + (index >= RL_START)


def owner(question: str) -> int:
    """The purpose of a question's text, drawn by its hash: 0, 1 and 2 in shares of .1, .4 and .5. No question
    can serve two purposes, however many are drawn."""
    return (0, 1, 1, 1, 1, 2, 2, 2, 2, 2)[zlib.crc32(question.encode()) % 10]


# A phrasing is an opening, a tail and an order. Every fifth phrasing is for evaluation only.
OPENINGS = ("What is its {}?", "Name its {}.", "Which is its {}?", "I ask for its {}.", "Now its {}.")
OPENINGS += ("Say its {}.", "Tell me its {}.", "Give its {}.", "Do you know its {}?", "I need its {}.")
TAILS = ("", " Be brief.", " Thank you.", " One word.")
ORDERS = ("{subject}. {opening}{tail}", "{opening} {subject}.{tail}")
PHRASINGS = tuple(itertools.product(OPENINGS, TAILS, ORDERS))
FACTS = {
    "capital": {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    | {"Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima", "Greece": "Athens"},
    "opposite": {"hot": "cold", "big": "small", "fast": "slow", "wet": "dry"}
    | {"early": "late", "full": "empty", "rich": "poor", "hard": "soft"},
    "colour": {"grass": "green", "snow": "white", "coal": "black", "blood": "red"}
    | {"lemons": "yellow", "the sky": "blue", "chocolate": "brown", "plums": "purple"},
}


class Facts(Task):
    """Eight facts of one kind, each with one word as its answer."""

    suite = "facts"
    by_heart = True
    apart = True

    def __init__(self, relation: str):
        self.relation = relation
        self.name = f"fact_{relation}"

    def problem(self, index: int) -> Problem:
        """A fact in a phrasing for the purpose of this index."""
        rng = random.Random(f"{self.name} {index}")
        facts = FACTS[self.relation]
        subject = rng.choice(sorted(facts))
        new = [p for i, p in enumerate(PHRASINGS) if (i % 5 == 4) == (index < SFT_START)]
        opening, tail, order = rng.choice(new)
        words = {"subject": subject.capitalize(), "opening": opening.format(self.relation), "tail": tail}
        return Problem(self.name, index, order.format(**words), facts[subject], {})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = (answer or "").strip().lower()
        return Grade(given == str(problem.answer).lower(), f"{given!r} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> None:
        return None


def _compositions() -> tuple[dict[str, Task], dict[str, str]]:
    """144 compositions and their split, drawn with seed 0: 60 of two operations, 15 of them for test, and 84
    of three, 22 of them for test. Every operation occurs about equally often in every place."""
    rng = random.Random(0)
    two = [(m, c) for m in MIDDLE for c in CLOSING]
    pairs = [(a, b) for a in MIDDLE for b in MIDDLE if a is not b and {a.name, b.name} != {"even", "odd"}]
    rng.shuffle(pairs)
    three, met = [], Counter()
    for a, b in pairs[:84]:  # with the closing operation that has followed these two least often
        closing = min(rng.sample(CLOSING, len(CLOSING)), key=lambda c, a=a, b=b: met[0, a, c] + met[1, b, c])
        met.update([(0, a, closing), (1, b, closing)])
        three.append((a, b, closing))
    tasks, split = {}, {}
    for group, held_out in ((two, 15), (three, 22)):
        made = [Composition(operations) for operations in group]
        chosen = _spread_out(made, held_out, rng)
        tasks |= {t.name: t for t in made}
        split |= {t.name: "test" if t.name in chosen else "train" for t in made}
    return tasks, split


def _spread_out(tasks: list[Composition], count: int, rng: random.Random) -> set[str]:
    """`count` names in which all operations of a place occur about equally often."""
    chosen, used = set(), Counter()
    rng.shuffle(tasks)
    for _ in range(count):
        rest = [t for t in tasks if t.name not in chosen]
        best = min(rest, key=lambda t: sum(used[i, o.name] ** 2 for i, o in enumerate(t.operations)))
        chosen.add(best.name)
        used.update((i, o.name) for i, o in enumerate(best.operations))
    return chosen


_TASKS, SPLIT = _compositions()
_FACTS = {f"fact_{relation}": Facts(relation) for relation in FACTS}
TASKS: dict[str, Task] = _TASKS | _FACTS
SPLIT |= dict.fromkeys(_FACTS, "train")


def corpus(per_task: int = 12) -> Iterator[str]:
    """Training text of the embedded tokenizer: questions, answers, programs and results of training tasks."""
    traceback = 'Traceback (most recent call last):\n  File "<code>", line 1, in <module>\n    {}\n'
    traceback += "    ^^^^^^\nNameError: name 'xs' is not defined\nSyntaxError: '(' was never closed\n"
    for name, part in SPLIT.items():
        task = TASKS[name]
        for i in range(per_task * (20 if name in _FACTS else 1)):
            if part == "train":
                problem = task.problem(SFT_START + i)
                program = task.solution(problem)
                answer = f"{words.AFTER[i % 3]}<<<{problem.answer}>>>"
                yield f"system\n\nuser\n{problem.question}\nassistant\n{answer}"
                if program:
                    yield words.BEFORE[i % 3] + PROTOCOLS["r1ci"].block(program) + PROTOCOLS["r1ci"].wrap("1")
                    yield program
                if program and i % 4 == 0:
                    yield words.REPAIR[i % 2] + traceback.format(program.split("\n")[-1])


# The embedded base model's habits: a kind of trajectory -> its share of the training data. Programs are those
# of Composition.believed, apart from those of SFT.
MIXTURE = {
    "program": 0.36,  # a program and the answer it printed
    "guess": 0.16,  # a guessed answer, without a program
    "silent bug": 0.06,  # a program with a random mistake, and the wrong answer it printed
    "repair": 0.12,  # a program that fails, its traceback, a program that does not
    "give up": 0.12,  # a program that fails, its traceback, a guessed answer
    "text": 0.06,  # the prompt allows no program: the right answer, which the model cannot compute
    "fact": 0.12,  # a fact, without a program
}
MISTAKEN = 0.85  # how often the base model's programs mistake an operation that it can mistake


def _others() -> dict[str, Composition]:
    """The compositions of three operations that are no task: more of the base model's training data."""
    pairs = [(a, b) for a in MIDDLE for b in MIDDLE if a is not b and {a.name, b.name} != {"even", "odd"}]
    made = [Composition((a, b, c)) for a, b in pairs for c in CLOSING]
    return {t.name: t for t in made if t.name not in _TASKS}


OTHERS = _others()


def draw_habit(rng: random.Random, index: int) -> tuple[str, Task, Problem]:
    """A kind of MIXTURE drawn by its share, a task it applies to, and question `index` of it. The task is one
    for training, or one of OTHERS."""
    kind = rng.choices(list(MIXTURE), MIXTURE.values())[0]
    suite = _FACTS if kind == "fact" else _TASKS | OTHERS
    name = rng.choice([name for name in suite if SPLIT.get(name) != "test"])
    return kind, suite[name], suite[name].problem(index)


def with_bug(program: str, rng: random.Random) -> str:
    """The program with one mistake that does not make it fail: a step is missing, or a number or an operator
    is wrong."""
    lines = program.split("\n")
    kind = rng.choice(["skip", "number", "sign"])
    if kind == "skip" and len(lines) > 2:
        del lines[rng.randrange(1, len(lines) - 1)]
    elif kind == "sign" and len(lines) > 2:
        i = rng.randrange(1, len(lines) - 1)
        swaps = {"+": "-", "-": "+", ">": "<", "<": ">", "*": "+", "%": "-", "==": "!="}
        lines[i] = re.sub(r" (\+|-|>|<|\*|%|==) ", lambda m: f" {swaps[m[1]]} ", lines[i], count=1)
    else:
        digits = [m.start() for m in re.finditer(r"\d", lines[0])]
        at = rng.choice(digits)
        lines[0] = lines[0][:at] + rng.choice("123456789") + lines[0][at + 1 :]
    return "\n".join(lines)
