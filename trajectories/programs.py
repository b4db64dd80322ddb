"""Trajectories made from the tasks' reference programs.

drafts = from_programs(["toy_add_sum"], "r1ci", per_task=2, repair=0.2, seed=0)
records = list(execute(drafts, sandbox))

A Draft is a trajectory whose programs have not run. `carry_out` runs them and stores what the sandbox gave.
shapes.py has more shapes, for larger models.
"""

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from plumbing.config import UsageError
from plumbing.progress import progress
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, SFT_START, Problem, get, get_protocol, output, words
from trajectories.checks import judge
from trajectories.faults import Fault
from trajectories.records import trajectory

CHUNK = 500  # drafts that run together


@dataclass(frozen=True)
class Step:
    """Words and a program; each is text, or a function of the previous steps' results. `accept` tells whether
    the program's result is the one that the words describe. A mistake is read, not trained."""

    words: str | Callable[[Sequence[Result]], str]
    program: str | Callable[[Sequence[Result]], str]
    accept: Callable[[Result], bool] = lambda result: True
    trained: bool = True


@dataclass
class Draft:
    """A trajectory whose programs have not run. Its last text, the answer, is made from their outputs."""

    problem: Problem
    programs: list[tuple[str, str] | Step]  # (words before, program)
    conclude: Callable[[list[str]], str]  # outputs -> the final text
    protocol: str = "r1ci"

    def step(self, number: int) -> Step:
        found = self.programs[number]
        return found if isinstance(found, Step) else Step(*found)


def straight(problem: Problem, rng: random.Random, repair: bool, protocol: str = "r1ci") -> Draft:
    """The draft of a right answer: the reference program, before it a failing one with `repair`. The answer
    alone where the task has no program."""
    mark = PROTOCOLS[protocol].answer
    program = get(problem.task).solution(problem)
    if program is None or not PROTOCOLS[protocol].open:
        return Draft(problem, [], lambda _: rng.choice(words.AFTER) + mark.format(problem.answer), protocol)
    programs = [(rng.choice(words.BEFORE), program)]
    if repair:
        programs.insert(0, (rng.choice(words.BEFORE), with_crash(program, rng)))
        programs[1] = (rng.choice(words.REPAIR), program)
    after = rng.choice(words.AFTER)
    return Draft(problem, programs, lambda outputs: after + mark.format(outputs[-1].strip()), protocol)


def with_crash(program: str, rng: random.Random) -> str:
    """The program with an error: a forgotten import, a wrong name, or an open bracket. A wrong name in a line
    that never runs does not make it fail."""
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


def carry_out(
    drafts: Sequence[Draft], sandbox: Sandbox, only_right: bool = True
) -> Iterator[tuple[Draft, dict | Fault]]:
    """Each draft and its trajectory or fault, after its programs have run in the sandbox. Without
    `only_right`, wrong answers are kept too (a base model's habits)."""
    for i in range(0, len(drafts), CHUNK):
        batch = drafts[i : i + CHUNK]
        results: list[list[Result]] = [[] for _ in batch]
        ran: list[list[str]] = [[] for _ in batch]
        for number in range(max((len(d.programs) for d in batch), default=0)):
            asked = [k for k, d in enumerate(batch) if number < len(d.programs) and _going(results[k])]
            for k in asked:
                program = batch[k].step(number).program
                ran[k].append(program if isinstance(program, str) else program(results[k]))
            programs = [PROTOCOLS[batch[k].protocol].to_run(ran[k][-1]) for k in asked]
            for k, result in zip(asked, sandbox.map(programs), strict=True):
                results[k].append(result)
        for d, programs, found in zip(batch, ran, results, strict=True):
            yield d, _finish(d, programs, found, sandbox, only_right)


def _going(results: Sequence[Result]) -> bool:
    return not results or results[-1].status != "sandbox_error"


def _finish(
    d: Draft, programs: Sequence[str], results: Sequence[Result], sandbox: Sandbox, only_right: bool
) -> dict | Fault:
    """The trajectory of a draft, or its fault."""
    protocol, messages = PROTOCOLS[d.protocol], [{"role": "user", "content": d.problem.question}]
    if not _going(results):
        return Fault("sandbox", " ".join(results[-1].stderr.split()))
    for number, (program, result) in enumerate(zip(programs, results, strict=True)):
        step = d.step(number)
        said = step.words if isinstance(step.words, str) else step.words(results[:number])
        message = {"role": "assistant", "content": said + protocol.block(program)}
        messages.append(message if step.trained else message | {"weight": 0})
        messages.append({"role": "tool", "content": output(result)})
        if only_right and not step.accept(result):
            return Fault("shape", f"program {number + 1}: {output(result)[-80:]!r}")
    messages.append({"role": "assistant", "content": d.conclude([r.stdout for r in results])})
    record = trajectory(d.problem, messages, "programs", d.protocol)
    if not only_right:
        return record
    try:
        return judge(record, d.problem, results, sandbox.timeout) or record
    except ValueError as error:
        return Fault("markup", str(error))


def execute(drafts: Sequence[Draft], sandbox: Sandbox, only_right: bool = True) -> Iterator[dict]:
    """The trajectories of `carry_out`. A draft is left out where the sandbox failed to run a program, and,
    with `only_right`, where the answer is wrong."""
    done = progress(len(drafts), "programs", carry_out(drafts, sandbox, only_right))
    outcomes = (outcome for _, outcome in done)
    return (outcome for outcome in outcomes if not isinstance(outcome, Fault))


def with_programs(tasks: Sequence[str], protocol: str, also: Iterable[str] = ()) -> list[str]:
    """The tasks that have a reference program, are facts, or are in `also`. One line names the others: an
    answer without reasoning teaches guessing. Raises UsageError where no task is left."""
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
    """`per_task` drafts of each task, shuffled; a share `repair` begins with a failing program. Raises
    UsageError where no task has a program."""
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
