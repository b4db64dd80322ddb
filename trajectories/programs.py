"""The shapes of a trajectory made from a reference program: which programs it runs, in which order, and why.

A shape is a row of PARTS, of which `solve` runs the reference program; SHAPES says which there are and how
often each is drawn. A new shape is a line in SHAPES, a new part a function: (problem, program, rng) -> Step,
or None where it cannot be done for this question.

A Draft is a trajectory whose programs have not been run. carry_out() runs them, and what a step says or runs
may depend on what the steps before it really gave.
"""

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from plumbing.config import UsageError
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, SFT_START, Problem, get, get_protocol, output, words
from tasks.checks import check as check_program
from tasks.checks import look
from trajectories.checks import judge
from trajectories.format import Fault, trajectory

CHUNK = 500  # drafts whose programs are handed to the sandbox together


@dataclass(frozen=True)
class Step:
    """Words, then a program; each is text, or made from the results of the steps before. `accept`: whether
    what it gave is what the words around it speak of."""

    words: str | Callable[[Sequence[Result]], str]
    program: str | Callable[[Sequence[Result]], str]
    accept: Callable[[Result], bool] = lambda result: True


@dataclass
class Draft:
    """A trajectory whose programs have not been run yet. Its last text, the answer, may depend on what each
    program printed."""

    problem: Problem
    programs: list[tuple[str, str] | Step]  # (words before, program)
    conclude: Callable[[list[str]], str]  # outputs -> the final text
    protocol: str = "r1ci"

    def step(self, number: int) -> Step:
        found = self.programs[number]
        return found if isinstance(found, Step) else Step(*found)


def straight(problem: Problem, rng: random.Random, repair: bool, protocol: str = "r1ci") -> Draft:
    """The right way to the answer: by the reference program, or in words where there is none."""
    mark = PROTOCOLS[protocol].answer
    program = get(problem.task).solution(problem)
    if program is None or protocol == "text":
        return Draft(problem, [], lambda _: rng.choice(words.AFTER) + mark.format(problem.answer), protocol)
    programs = [(rng.choice(words.BEFORE), program)]
    if repair:
        programs.insert(0, (rng.choice(words.BEFORE), with_crash(program, rng)))
        programs[1] = (rng.choice(words.REPAIR), program)
    after = rng.choice(words.AFTER)
    return Draft(problem, programs, lambda outputs: after + mark.format(outputs[-1].strip()), protocol)


def with_crash(program: str, rng: random.Random) -> str:
    """The program with a slip that makes it fail: an import forgotten, a wrong name, or a bracket left open.
    In a line that is never reached, a wrong name does no harm: run it to know."""
    lines = program.split("\n")
    imports = [i for i, line in enumerate(lines) if re.match(r"(from|import) ", line)]
    if imports and rng.random() < 0.3:
        del lines[rng.choice(imports)]
        return "\n".join(lines).strip("\n")
    code = [i for i, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")]
    code = code[1:] or code
    for _ in range(100):
        i = rng.choice(code)
        names = re.findall(r"\b[a-z_]+\b(?=[\])\[]|$)", lines[i])
        if names and rng.random() < 0.7:
            changed = f"{names[-1]}s".join(lines[i].rsplit(names[-1], 1))
        else:
            changed = lines[i].rstrip("])")
        if changed != lines[i]:
            break
    return "\n".join([*lines[:i], changed, *lines[i + 1 :]])


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
    """A look at what is given: how many, how long, from where to where."""
    first = look(program)
    return None if first is None else Step(rng.choice(FIRST), first, lambda result: result.status == "ok")


def fail(problem: Problem, program: str, rng: random.Random) -> Step:
    """The reference program with a slip in it, whose real traceback the next step answers."""
    return Step(rng.choice(SOLVE), with_crash(program, rng), lambda result: result.status == "error")


def check(problem: Problem, program: str, rng: random.Random) -> Step | None:
    """A program that puts the answer back into the question, where the task has one."""
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
    """A trajectory on this question in a shape drawn from SHAPES, of several programs with the chance
    `multi_turn`; in words where that is the right tool. None where it can be done neither way."""
    shape = PROTOCOLS[protocol]
    mark = shape.answer
    program = get(problem.task).solution(problem) if shape.open else None
    text = in_words(problem, rng) if program is None or rng.random() < BY_HAND else None
    if text is not None and not shape.prefill:
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
    """Words that name the error of the step before."""

    def say(results: Sequence[Result]) -> str:
        lines = results[-1].stderr.strip().split("\n")
        return template.format(error=lines[-1].split(":")[0])

    return say


BY_HAND = 0.3  # share of the questions below that are answered in words although there is a program


def in_words(problem: Problem, rng: random.Random) -> str | None:
    """The reasoning up to the answer, for tasks where a program would be no help; None for others."""
    made = WORDS.get(problem.task)
    return made(problem) if made else rng.choice(LAST) if get(problem.task).by_heart else None


def _siblings(problem: Problem) -> str | None:
    """aiw: the woman that is asked about counts too. What Matilda's colleagues are is open to dispute."""
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
    """Who has what after each swap, and then the option."""
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


def carry_out(
    drafts: Sequence[Draft], sandbox: Sandbox, only_right: bool = True
) -> Iterator[tuple[Draft, dict | None, Fault | None]]:
    """Run the programs of the drafts and write down what the sandbox really gives: for each the trajectory,
    or why there is none. Without `only_right` (a base model's habits) any answer and any output will do."""
    for i in range(0, len(drafts), CHUNK):
        batch = drafts[i : i + CHUNK]
        results: list[list[Result]] = [[] for _ in batch]
        ran: list[list[str]] = [[] for _ in batch]
        for number in range(max((len(d.programs) for d in batch), default=0)):
            asked = [k for k, d in enumerate(batch) if number < len(d.programs) and _going(results[k])]
            for k in asked:
                program = batch[k].step(number).program
                ran[k].append(program if isinstance(program, str) else program(results[k]))
            for k, result in zip(asked, sandbox.map([ran[k][-1] for k in asked]), strict=True):
                results[k].append(result)
        for d, programs, found in zip(batch, ran, results, strict=True):
            yield d, *_finish(d, programs, found, sandbox, only_right)


def _going(results: Sequence[Result]) -> bool:
    return not results or results[-1].status != "sandbox_error"


def _finish(
    d: Draft, programs: Sequence[str], results: Sequence[Result], sandbox: Sandbox, only_right: bool
) -> tuple[dict | None, Fault | None]:
    """The trajectory of a draft, or why there is none."""
    protocol, messages = PROTOCOLS[d.protocol], [{"role": "user", "content": d.problem.question}]
    if not _going(results):
        return None, Fault("sandbox", " ".join(results[-1].stderr.split()))
    for number, (program, result) in enumerate(zip(programs, results, strict=True)):
        said = d.step(number).words
        text = (said if isinstance(said, str) else said(results[:number])) + protocol.block(program)
        if protocol.prefill and number == 0:  # the prompt has opened the block already
            text = protocol.block(program).removeprefix(protocol.prefill)
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "tool", "content": output(result)})
        if only_right and not d.step(number).accept(result):
            return None, Fault("shape", f"program {number + 1}: {output(result)[-80:]!r}")
    messages.append({"role": "assistant", "content": d.conclude([r.stdout for r in results])})
    record = trajectory(d.problem, messages, "programs", d.protocol)
    if only_right:
        try:
            fault = judge(record, d.problem, results, sandbox.timeout)
        except ValueError as error:
            fault = Fault("markup", str(error))
        if fault:
            return None, fault
    return record, None


def execute(drafts: Sequence[Draft], sandbox: Sandbox, only_right: bool = True) -> Iterator[dict]:
    """The trajectories of the drafts, with the real results. Those whose answer is graded wrong (a program
    that timed out, say) are left out, unless they are wanted. Those with a program that the sandbox could not
    run are left out always: nobody knows its output."""
    return (record for _, record, _ in carry_out(drafts, sandbox, only_right) if record is not None)


def with_programs(tasks: Sequence[str], protocol: str, also: Iterable[str] = ()) -> list[str]:
    """Those of the tasks that have a reference program, are known by heart, or are among `also`. The others
    are named in one line, since a bare answer teaches guessing. Raises UsageError where none is left."""
    if get_protocol(protocol).follow_up:
        raise UsageError(
            f"--protocol {protocol}: it asks the model to check itself; make trajectories in r1ci"
        )
    known = {n for n in tasks if get(n).by_heart or n in also}
    bare = {n for n in tasks if n not in known and get(n).solution(get(n).problem(SFT_START)) is None}
    if bare:
        print(f"left out, without a reference program: {', '.join(sorted(bare))}", file=sys.stderr)
    tasks = [name for name in tasks if name not in bare]
    if not tasks:
        raise UsageError("--tasks: none of these has a reference program; expected others, or sft.py --data")
    return tasks


def from_programs(
    tasks: Sequence[str], protocol: str, per_task: int, repair: float, seed: int
) -> list[Draft]:
    """`per_task` trajectories of each task in the two simplest shapes, in an order that mixes the tasks: for
    the embedded model, which learns from few words. Raises UsageError where no task has a program."""
    tasks = with_programs(tasks, protocol)
    rng = random.Random(f"coldstart {seed}")
    drafts = []
    for i in range(per_task):
        for name in tasks:
            problem = get(name).problem(SFT_START + i)
            if protocol == "code" and get(name).solution(problem) is None:
                continue  # nothing to open the answer with
            drafts.append(straight(problem, rng, rng.random() < repair, protocol))
    rng.shuffle(drafts)
    return drafts
