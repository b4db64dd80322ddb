"""The shapes of a trajectory made from a reference program: which programs it runs, and in which order.

SHAPES says how often each is drawn. A shape is a function (problem, program, rng) -> Story, or None where it
does not suit the question; a new one is a line in SHAPES.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox import Result
from tasks import PROTOCOLS, Problem, get
from tasks.checks import check as check_program
from trajectories.halves import can_be_copied, halves
from trajectories.programs import Draft, Step
from trajectories.slips import LOUD, SILENT, Slip, slip

BY_HAND = 0.3  # share of the questions of WORDS that are answered in words although there is a program
SHORT = 20  # characters of an answer that is given without a program
ROOM = 512  # tokens of an answer that has several programs, about
SOLVE = (
    "Let's write a Python program for this.\n",
    "To solve this, we can use a short Python program.\n",
    "Let's solve this using Python code.\n",
    "Let's compute this with Python.\n",
    "Here is a Python program that solves this:\n",
)
FIRST = (
    "Let's solve this in two steps. First, compute the {}.\n",
    "The first step is to find the {}.\n",
    "First, let's compute the {}.\n",
)
THEN = (
    "Now we can use the {} from this result.\n",
    "The second step uses the {}.\n",
    "Next, let's use the {} to find the answer.\n",
)
MEND = ("{why}\n", "The program failed with {error}. {why}\n", "{why} Let's fix it.\n")
CHECK = (
    "Let's check this answer with a second program.\n",
    "Let's verify this answer.\n",
    "Before answering, let's check it in another way.\n",
)
GIVE_UP = (
    "This does not run, so I answer without a program: ",
    "The program fails. Without it, my answer is ",
    "I give this program up. My answer is ",
)
HELD = ("The check holds: ", "The answer is confirmed: ", "The check passes: ")
FAILED = ("The check fails. {why}\n", "This answer is wrong. {why}\n")
LAST = ("", "The answer is ", "So the answer is ", "The result is ")


@dataclass(frozen=True)
class Story:
    """The programs of a trajectory; the index of the one that prints the answer, or None: it is the problem's
    own; and how the final message may begin."""

    steps: list[Step]
    answer: int | None = -1
    last: Sequence[str] = LAST


def solve(problem: Problem, program: str, rng: random.Random) -> Story:
    """The reference program alone; what it prints is the answer."""
    return Story([_right(rng.choice(SOLVE), program)])


def repair(problem: Problem, program: str, rng: random.Random) -> Story | None:
    """The reference program with a slip that raises an error, then without it; words say what was wrong."""
    made = slip(program, LOUD, rng)
    if made is None or not _fits(problem, program, made.program):
        return None
    template = rng.choice(MEND)

    def mend(results: Sequence[Result]) -> str:
        return template.format(error=_error(results[-1]), why=made.why)

    return Story([_failing(rng.choice(SOLVE), made), _right(mend, program)])


def give_up(problem: Problem, program: str, rng: random.Random) -> Story | None:
    """A program that fails, once or twice with the same error, then a short answer without one. It is a
    guess, and better than none: small models repeat such a program until no token is left."""
    made = slip(program, LOUD, rng)
    if made is None or len(str(problem.answer)) > SHORT or not _fits(problem, made.program, made.program):
        return None
    again = rng.choice(("Let's try again.\n", "Let's fix it.\n", "I run it again.\n"))
    failures = [_failing(rng.choice(SOLVE), made), _failing(again, made)]
    return Story(failures[: rng.choice((1, 1, 2))], None, GIVE_UP)


def verify(problem: Problem, program: str, rng: random.Random) -> Story | None:
    """The reference program, then a check of its answer in another way, which holds."""
    check = check_program(problem, program, str(problem.answer))
    if check is None or not _fits(problem, program, check):
        return None
    return Story([_right(rng.choice(SOLVE), program), _check(problem, program, rng, holds=True)], -2, HELD)


def two_steps(problem: Problem, program: str, rng: random.Random) -> Story | None:
    """Half of the reference program, then the other half with the value that the first one printed."""
    made = halves(program, rng)
    if made is None or not _fits(problem, made.first, made.head, made.rest):
        return None
    first = Step(
        rng.choice(FIRST).format(made.name),
        made.first,
        lambda result: result.status == "ok" and can_be_copied(result.stdout),
    )
    return Story(
        [first, _right(rng.choice(THEN).format(made.name), lambda results: made.then(results[0].stdout))]
    )


def correct(problem: Problem, program: str, rng: random.Random) -> Story | None:
    """The reference program with a slip that prints a wrong answer, a check that shows it, the right one."""
    made = slip(program, SILENT, rng)
    check = check_program(problem, program, str(problem.answer))
    if made is None or check is None or not _fits(problem, program, made.program, check):
        return None
    return Story(
        [
            _right(rng.choice(SOLVE), made.program, trained=False),
            _check(problem, program, rng, holds=False),
            _right(rng.choice(FAILED).format(why=made.why), program),
        ]
    )


SHAPES = {  # shape -> how often, among those with one program or with several
    solve: 1.0,
    repair: 0.2,
    give_up: 0.6,
    verify: 0.5,
    two_steps: 0.4,
    correct: 0.5,
}


def draft(problem: Problem, multi_turn: float, rng: random.Random, protocol: str) -> Draft | None:
    """A trajectory on this question in a shape drawn from SHAPES, with several programs at probability
    `multi_turn` where such a shape suits it (give_up has one or two); without a program where WORDS has the
    reasoning. None where neither is possible."""
    shape = PROTOCOLS[protocol]
    mark = shape.answer
    program = get(problem.task).solution(problem) if shape.open else None
    text = in_words(problem, rng) if program is None or rng.random() < BY_HAND else None
    if text is not None and protocol != "code":
        return Draft(problem, [], lambda _: text + mark.format(problem.answer), protocol)
    if program is None:
        return None
    told = _story(problem, program.strip("\n"), multi_turn, rng)
    last = rng.choice(told.last)

    def conclude(outputs: list[str]) -> str:
        answer = problem.answer if told.answer is None else outputs[told.answer].strip()
        return last + mark.format(answer)

    return Draft(problem, told.steps, conclude, protocol)


def _story(problem: Problem, program: str, multi_turn: float, rng: random.Random) -> Story:
    """A story in a shape of several programs at probability `multi_turn`, where one suits the question."""
    several = rng.random() < multi_turn
    left = {shape: share for shape, share in SHAPES.items() if (shape is not solve) == several}
    while left:
        shape = rng.choices(list(left), left.values())[0]
        told = shape(problem, program, rng)
        if told is not None:
            return told
        del left[shape]
    return solve(problem, program, rng)


def _right(words: str | Callable, program: str | Callable, trained: bool = True) -> Step:
    """A step whose program runs to its end."""
    return Step(words, program, lambda result: result.status == "ok", trained)


def _failing(words: str, made: Slip) -> Step:
    """A step whose program raises the error of its slip; it is read, not trained."""

    def fails(result: Result) -> bool:
        return result.status == "error" and _error(result) in made.errors

    return Step(words, made.program, fails, trained=False)


def _check(problem: Problem, program: str, rng: random.Random, holds: bool) -> Step:
    """A step that checks the answer before it; each of the lines it prints is True, or one is False."""
    return Step(
        rng.choice(CHECK),
        lambda results: check_program(problem, program, results[-1].stdout),
        lambda result: result.status == "ok" and ("False" not in result.stdout.split()) == holds,
    )


def _error(result: Result) -> str:
    """The name of the exception that ended a program."""
    return result.stderr.strip().split("\n")[-1].split(":")[0]


def _fits(problem: Problem, *programs: str) -> bool:
    """Whether an answer with these programs, their results and its words has at most about ROOM tokens."""
    around = 30 * len(programs) + 30  # words, marks, a traceback
    return around + sum(map(tokens, programs)) + 2 * tokens(str(problem.answer)) <= ROOM


def tokens(text: str) -> int:
    """About as many tokens as Qwen2.5 needs: one per digit, mark, blank and seven letters."""
    return len(re.findall(r"[^\x00-\x7f]|\d| ?[A-Za-z]{1,7}|_| ?[^\w\s]+|\s+", text))


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
