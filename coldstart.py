"""Where supervised trajectories come from: the tasks' reference programs, really executed.

    python coldstart.py --tasks toy --per-task 2 --out trajectories.jsonl

Each line is one trajectory that sft.py reads:

    {"task": ..., "index": ..., "protocol": "r1ci", "turns": 2, "messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text and a code block}, {"role": "tool", "content": output}, ...,
        {"role": "assistant", "content": the answer}]}

A share of them starts with a program that fails with a real traceback and is then repaired, since the first
paper found that such multi-turn trajectories matter most.
"""

import itertools
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import config
from config import UsageError, option
from rollout import open_sandbox
from sandbox import Sandbox
from tasks import (
    PROTOCOLS,
    SFT_START,
    Problem,
    extract_answer,
    for_training,
    get,
    get_protocol,
    output,
    use_bbh,
    words,
)


@dataclass(frozen=True)
class Config:
    tasks: str = option("toy", "task or suite names, comma separated; of a suite, its training tasks")
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    per_task: int = option(2, "trajectories per task; R1-Code-Interpreter uses at most 70", least=1)
    repair: float = option(0.2, "share that begins with a failing program and repairs it", least=0)
    seed: int = option(0, "phrasings and mistakes", least=0)
    out: str = option("trajectories.jsonl", "file to write")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


@dataclass
class Draft:
    """A trajectory whose programs have not been run yet. parts alternate: what the assistant says before a
    program, the program, ..., and last the answer, which may depend on the outputs."""

    problem: Problem
    programs: list[tuple[str, str]]  # (words before, program)
    conclude: Callable[[list[str]], str]  # outputs -> the final text
    protocol: str = "r1ci"


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
    """The program with a slip in one line that makes it fail: a wrong name, or a bracket left open."""
    lines = program.split("\n")
    i = rng.randrange(1, len(lines)) if len(lines) > 1 else 0
    names = re.findall(r"\b[a-z_]+\b(?=[\])\[]|$)", lines[i])
    if names and rng.random() < 0.7:
        lines[i] = f"{names[-1]}s".join(lines[i].rsplit(names[-1], 1))
    else:
        lines[i] = lines[i].rstrip("])")
    return "\n".join(lines)


def execute(drafts: Sequence[Draft], sandbox: Sandbox, only_right: bool = True) -> Iterable[dict]:
    """Run every program of the drafts in the sandbox and write the trajectories with the real results; those
    whose answer is graded wrong (a program that timed out, say) are left out, unless they are wanted. Those
    with a program that the sandbox could not run are left out always: nobody knows its output."""
    results = iter(sandbox.map([program for draft in drafts for _, program in draft.programs]))
    for draft in drafts:
        protocol, messages, outputs = PROTOCOLS[draft.protocol], [], []
        found = list(itertools.islice(results, len(draft.programs)))
        if any(result.status == "sandbox_error" for result in found):
            continue
        messages.append({"role": "user", "content": draft.problem.question})
        for (before, program), result in zip(draft.programs, found, strict=True):
            outputs.append(result.stdout)
            text = before + protocol.block(program)
            if protocol.prefill and len(messages) == 1:  # the prompt has opened the block already
                text = protocol.block(program).removeprefix(protocol.prefill)
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "tool", "content": output(result)})
        messages.append({"role": "assistant", "content": draft.conclude(outputs)})
        answer = extract_answer(messages[-1]["content"], protocol)
        if only_right and not get(draft.problem.task).grade(draft.problem, answer).correct:
            continue
        yield {
            "task": draft.problem.task,
            "index": draft.problem.index,
            "protocol": draft.protocol,
            "turns": len(draft.programs) + 1,
            "messages": messages,
        }


def from_programs(
    tasks: Sequence[str], protocol: str, per_task: int, repair: float, seed: int
) -> list[Draft]:
    """`per_task` right trajectories of each task, in an order that mixes the tasks. Tasks without a reference
    program are left out with one line, since a bare answer teaches guessing; facts are known or not. Raises
    UsageError where none is left."""
    if get_protocol(protocol).follow_up:
        raise UsageError(
            f"--protocol {protocol}: it asks the model to check itself; make trajectories in r1ci"
        )
    bare = {n for n in tasks if not get(n).by_heart and get(n).solution(get(n).problem(SFT_START)) is None}
    if bare:
        print(f"left out, without a reference program: {', '.join(sorted(bare))}", file=sys.stderr)
    tasks = [name for name in tasks if name not in bare]
    if not tasks:
        raise UsageError("--tasks: none of these has a reference program; expected others, or sft.py --data")
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


def write(records: Iterable[dict], path: str | Path) -> int:
    """Write records as JSON lines, all or none; the number written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with open(temporary, "x") as f:
            for record in records:
                f.write(json.dumps(record) + "\n")
                count += 1
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def main() -> None:
    cfg = config.parse(Config, __doc__)
    get_protocol(cfg.protocol)
    config.new_file(cfg.out, "--out")
    use_bbh(cfg.bbh)
    tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
    drafts = from_programs(tasks, cfg.protocol, cfg.per_task, cfg.repair, cfg.seed)
    with open_sandbox(cfg.sandbox) as sandbox:
        count = write(execute(drafts, sandbox), cfg.out)
    print(f"{count} trajectories -> {cfg.out}; {len(drafts) - count} were wrong, or not run, and left out")


if __name__ == "__main__":
    config.run(main)
