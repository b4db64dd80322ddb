"""Questions for supervised trajectories: different from each other and from those of evaluation."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence

from plumbing.config import UsageError
from plumbing.progress import progress
from tasks import RL_START, SFT_START, Problem, get, use_bbh
from trajectories.faults import Fault


def evaluated(task: str, count: int, bbh: str | None = None) -> set[str]:
    """Digests of a task's first `count` evaluation questions; none where no text occurs in two ranges."""
    use_bbh(bbh)
    found = get(task)
    if found.apart or found.suite == "math":
        return set()
    return {found.problem(i).digest for i in range(min(count, SFT_START))}


class Questions:
    """Questions of a task from SFT_START on, without repetitions and evaluation questions; `held_out` has the
    digests of these. `faults` holds a fault for each question that was left out."""

    def __init__(self, task: str, held_out: set[str]):
        self.task, self.seen, self.next, self.faults = get(task), set(), SFT_START, []
        self.held_out = held_out

    def take(self, count: int, most: int) -> list[Problem]:
        """Up to `count` of the next `most` questions."""
        found = []
        for index in range(self.next, min(self.next + most, RL_START)):
            self.next = index + 1
            problem = self.task.problem(index)
            mark = problem.digest
            if mark in self.seen or mark in self.held_out:
                self.faults.append(Fault("repeated" if mark in self.seen else "evaluation"))
                continue
            self.seen.add(mark)
            found.append(problem)
            if len(found) == count:
                break
        return found


def open_questions(tasks: Sequence[str], cfg) -> dict[str, Questions]:
    """The questions of each task; all cores generate the evaluation's questions."""
    tasks = list(dict.fromkeys(tasks))
    work = [name for name in tasks if not get(name).apart and get(name).suite != "math"]
    held_out = {}
    if len(work) * cfg.evaluation > 5000:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
            jobs = {pool.submit(evaluated, name, cfg.evaluation, cfg.bbh): name for name in work}
            for job in progress(len(jobs), "evaluation's questions", concurrent.futures.as_completed(jobs)):
                held_out[jobs[job]] = job.result()
    return {
        name: Questions(name, held_out.get(name) or evaluated(name, cfg.evaluation, cfg.bbh))
        for name in tasks
    }


def to_ask(tasks: Sequence[str], cfg) -> list[Problem]:
    """--per-task questions of each task. Raises UsageError where evaluation asks them all."""
    streams = open_questions(tasks, cfg).values()
    found = [p for stream in streams for p in stream.take(cfg.per_task, 4 * cfg.per_task)]
    if not found:
        raise UsageError(
            f"--tasks {cfg.tasks}: evaluation asks all of these questions; expected other tasks, or fewer "
            f"than --evaluation {cfg.evaluation}"
        )
    return found
