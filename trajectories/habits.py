"""A base model's ways to answer, right and wrong: text alone, guesses, mistaken programs, repairs.
toy.MIXTURE has the share of each."""

import random
from collections.abc import Iterator

from tasks import SFT_START, Problem, Task, toy, words
from trajectories.programs import Draft, with_crash


def habit(kind: str, task: Task, problem: Problem, rng: random.Random) -> Draft:
    """A trajectory of one kind of toy.MIXTURE; its programs have not run yet."""
    guess = f"{rng.choice(words.AFTER)}<<<{rng.randrange(10 ** rng.randint(1, 3))}>>>"
    if kind in ("text", "fact"):
        answer = f"{rng.choice(words.AFTER)}<<<{problem.answer}>>>"
        return Draft(problem, [], lambda _: answer, protocol="text" if kind == "text" else "r1ci")
    if kind == "guess":
        return Draft(problem, [], lambda _: guess)
    program, before = task.believed(problem, rng), rng.choice(words.BEFORE)
    if kind == "give up":
        return Draft(problem, [(before, with_crash(program, rng))], lambda _: guess)
    programs = [(before, toy.with_bug(program, rng) if kind == "silent bug" else program)]
    if kind == "repair":
        programs = [(before, with_crash(program, rng)), (rng.choice(words.REPAIR), program)]
    after = rng.choice(words.AFTER)
    return Draft(problem, programs, lambda outputs: f"{after}<<<{outputs[-1].strip() or 0}>>>")


def mixture(count: int, seed: int) -> Iterator[Draft]:
    """`count` trajectories of the kinds and in the shares of toy.MIXTURE."""
    rng = random.Random(f"base {seed}")
    for i in range(count):
        yield habit(*toy.draw_habit(rng, SFT_START + 10_000 + i), rng)
