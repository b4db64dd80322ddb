"""The shapes of a trajectory made from a reference program: which programs it runs, and in which order.

A shape is a row of PARTS; SHAPES says how often each is drawn. A new shape is a line in SHAPES. A new part is
a function (problem, program, rng) -> Step, or None where it does not suit the question.
"""

import random
import re
from collections.abc import Callable, Sequence

from sandbox import Result
from tasks import PROTOCOLS, Problem, get
from tasks.checks import check as check_program
from tasks.checks import look
from trajectories.programs import Draft, Step, with_crash

BY_HAND = 0.3  # share of the questions of WORDS that are answered in words although there is a program
FIRST = ("First I look at what is given.\n", "Before solving it, I look at the data.\n", "What is given?\n")
SOLVE = (
    "A program settles this.\n",
    "I write a program for it.\n",
    "This is best computed.\n",
    "I let Python work it out.\n",
    "Counting by hand is error-prone here, so I use code.\n",
)
NEXT = ("Now the question itself.\n", "With that I can solve it.\n", "Now I work it out.\n")
MEND = (
    "{error}: I correct that line and run it again.\n",
    "It failed with {error}. Corrected:\n",
    "That was a slip ({error}). Once more:\n",
)
CHECK = (
    "I check this answer with a second program.\n",
    "Before I answer, I verify it against the question.\n",
    "Does it hold? I test it in another way.\n",
)
HELD = ("The check holds. ", "It is confirmed. ", "All conditions are met. ")
LAST = ("", "The answer is ", "So the answer is ", "This gives ")


def solve(problem: Problem, program: str, rng: random.Random) -> Step:
    """The reference program; what it prints is the answer."""
    return Step(rng.choice(SOLVE), program, lambda result: result.status == "ok")


def explore(problem: Problem, program: str, rng: random.Random) -> Step | None:
    """A look at the question's data: how many, how long, from where to where."""
    first = look(program)
    return None if first is None else Step(rng.choice(FIRST), first, lambda result: result.status == "ok")


def fail(problem: Problem, program: str, rng: random.Random) -> Step:
    """The reference program with an error in it. The next step corrects it and names the real error."""
    return Step(rng.choice(SOLVE), with_crash(program, rng), lambda result: result.status == "error")


def check(problem: Problem, program: str, rng: random.Random) -> Step | None:
    """A program that puts the answer back into the question; None where the task has no such check."""
    if check_program(problem, program, "") is None:
        return None
    return Step(
        rng.choice(CHECK),
        lambda results: check_program(problem, program, results[-1].stdout),
        lambda result: result.status == "ok" and set(result.stdout.split()) == {"True"},
    )


PARTS = {"explore": explore, "fail": fail, "solve": solve, "check": check}
SHAPES = {  # parts in order -> how often, among the shapes with one program or with several
    ("solve",): 1.0,
    ("fail", "solve"): 0.3,
    ("explore", "solve"): 0.25,
    ("solve", "check"): 0.25,
    ("explore", "fail", "solve"): 0.1,
    ("fail", "solve", "check"): 0.1,
}


def draft(problem: Problem, multi_turn: float, rng: random.Random, protocol: str) -> Draft | None:
    """A trajectory on this question in a shape drawn from SHAPES, with several programs at probability
    `multi_turn`; without a program where WORDS has the reasoning. None where neither is possible."""
    shape = PROTOCOLS[protocol]
    mark = shape.answer
    program = get(problem.task).solution(problem) if shape.open else None
    text = in_words(problem, rng) if program is None or rng.random() < BY_HAND else None
    if text is not None and protocol != "code":
        return Draft(problem, [], lambda _: text + mark.format(problem.answer), protocol)
    if program is None:
        return None
    several = rng.random() < multi_turn
    left = {parts: share for parts, share in SHAPES.items() if (len(parts) > 1) == several}
    steps: list[Step | None] = [None]
    while None in steps:
        parts = rng.choices(list(left), left.values())[0]
        steps = [PARTS[part](problem, program, rng) for part in parts]
        del left[parts]
    place = parts.index("solve")
    for i, part in enumerate(parts):
        if i and parts[i - 1] == "fail":
            steps[i] = Step(_mend(rng.choice(MEND)), steps[i].program, steps[i].accept)
        elif i and part == "solve":
            steps[i] = Step(rng.choice(NEXT), steps[i].program, steps[i].accept)
    last = rng.choice(HELD if parts[-1] == "check" else LAST)
    return Draft(problem, steps, lambda outputs: last + mark.format(outputs[place].strip()), protocol)


def _mend(template: str) -> Callable[[Sequence[Result]], str]:
    """Words that name the error of the previous step."""

    def say(results: Sequence[Result]) -> str:
        lines = results[-1].stderr.strip().split("\n")
        return template.format(error=lines[-1].split(":")[0])

    return say


def in_words(problem: Problem, rng: random.Random) -> str | None:
    """The reasoning before the answer, for tasks where a program is no help; None for the others."""
    made = WORDS.get(problem.task)
    return made(problem) if made else rng.choice(LAST) if get(problem.task).by_heart else None


def _siblings(problem: Problem) -> str | None:
    """The reasoning of aiw: the woman herself counts too. None for colleagues, whose number is disputed."""
    found = re.match(r"(\w+) has .*?(\d+) (sisters|female friends)", problem.question)
    if found is None or "colleagues" in problem.question:
        return None
    who, count, what = found.groups()
    one = what[:-1].replace("female ", "")
    whose = "a brother of hers" if one == "sister" else "a male friend of hers"
    return (
        f"{who} has {count} {what}, and for {whose} {who} herself is one more {one}: "
        f"{count} + 1 = {int(count) + 1}. "
    )


def _swaps(problem: Problem) -> str:
    """The reasoning of shuffled objects: who has what after each swap."""
    has, lines = dict(problem.meta["has"]), []
    for a, b in problem.meta["swaps"]:
        has[a], has[b] = has[b], has[a]
        lines.append(f"{a} and {b} swap: now {a} has {has[a]} and {b} has {has[b]}.")
    who = problem.meta["who"]
    return "\n".join([*lines, f"In the end {who} has {has[who]}. "])


WORDS: dict[str, Callable[[Problem], str | None]] = {
    "aiw": _siblings,
    "tracking_shuffled_objects_three_objects": _swaps,
}
