"""Curriculum by improvement potential: first the questions that a model can learn most from (2505.21668).

    python -m training.curriculum --model runs/sft/final --tasks toy --questions 400 --out curriculum.jsonl
    python grpo.py --model runs/sft/final --curriculum curriculum.jsonl --stage-steps 150 --out runs/grpo

The first command, a start of which goes on where an interrupted one ended, answers each question in four ways
with five samples each (WAYS):

    text      in words alone
    code      beginning with a program
    free      as the model likes
    guided    free, and once an answer is given, one more question that asks for a check by the other way

and writes a line per question: p, the share of right answers, and its potential P = 4p(1 - p), which is 1
where half of the answers are right and 0 where all or none are. The paper's guide is a model trained for it;
here its question is fixed, and the same for all. The paper does not give the temperature; here it is 1, that
of training. Questions are of the range for reinforcement learning, as in grpo.py. A model that is never right
in one way and nearly always in another has P near 1 on every question, and nothing is told apart: --ways free
--samples 20 then measures what training itself samples.

The second trains in stages (`Course`): first on questions with P in [.64, 1], then those in [.48, .64) join,
then [.32, .48), then the rest. The paper's stages have 150 steps each; here the last one has all that are
left. To compare with, --order difficulty sorts the same questions from easy to hard, by p, into stages of the
same sizes, so that only the choice differs, and --order none has one stage, all questions.
"""

import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from episode import Episode
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from rollout import Limits, PromptEncoder, Request, open_sandbox, rollout
from sample import Sampler
from sandbox import Sandbox
from tasks import PROTOCOLS, RL_START, Problem, for_training, get, split_of, use_bbh
from tokenizer import Tokenizer
from training.loading import load_model

WAYS = {"text": "text", "code": "code", "free": "r1ci", "guided": "guided"}  # way of answering -> protocol


BOUNDS = (0.64, 0.48, 0.32, 0.0)  # stage k adds the questions from the k-th on, below the one before


ORDERS = ("curriculum", "difficulty", "none")


BLOCK = 16  # rollout() holds its episodes in memory until all are done: so many per slot at once


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder that training will start from; tiny: random weights")
    tasks: str = option(
        "toy", "task or suite names, comma separated; of a suite, its training tasks; twice: twice as often"
    )
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    questions: int = option(400, "in all, spread evenly over the tasks; no two alike", least=1)
    ways: str = option(",".join(WAYS), "of answering; free alone: as training with --protocol r1ci samples")
    samples: int = option(5, "answers per question and way; 5 x 4 ways (R1-Code-Interpreter)", least=1)
    temperature: float = option(1.0, "as in training; the paper does not give it", above=0)
    max_prompt: int | None = option(None, "tokens; without it as many as the longest prompt has", least=1)
    max_tokens: int = option(512, "tokens of an episode after its prompt, as in training", least=1)
    max_calls: int = option(8, "programs per episode (R1-Code-Interpreter: 8)", least=0)
    timeout: float = option(5.0, "seconds per program (R1-Code-Interpreter: 60)", above=0)
    slots: int = option(128, "episodes decoded at once", least=1)
    seed: int = option(0, "sampling; weights of tiny", least=0)
    out: str = option("curriculum.jsonl", "new file; FILE.part holds the answers until all are given")
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


CHANGEABLE = frozenset({"out", "slots", "device"})  # what a start that goes on may change


def potential(right: int, samples: int) -> float:
    """P = 4p(1 - p) for p = right / samples, divided once: a question on a bound lies exactly on it.

    >>> potential(16, 20), 4 * 0.8 * (1 - 0.8)
    (0.64, 0.6399999999999999)
    """
    return 4 * right * (samples - right) / samples**2


def chosen_ways(ways: str) -> list[str]:
    """The ways of answering that --ways names, in the order of WAYS. Raises UsageError."""
    found = [way.strip() for way in ways.split(",") if way.strip()]
    if unknown := [way for way in found if way not in WAYS]:
        known = ", ".join(WAYS)
        raise UsageError(f"--ways {unknown[0]}{config.nearest(unknown[0], WAYS)}; known are {known}")
    if not found:
        raise UsageError(f"--ways {ways!r} names none; expected some of {', '.join(WAYS)}")
    return [way for way in WAYS if way in found]


def questions(tasks: Sequence[str], count: int) -> list[Problem]:
    """`count` different questions for reinforcement learning, the tasks in turn, no number twice; fewer where
    100 x `count` draws do not give as many."""
    found: dict[str, Problem] = {}
    for i in range(100 * count):
        problem = get(tasks[i % len(tasks)]).problem(RL_START + i)
        found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


Answers = dict[tuple[str, int, int], bool]  # (way, the question's index, sample) -> whether it is right


def read_part(part: Path, cfg: Config) -> Answers:
    """The answers that an interrupted start has left, none without; a new file gets its first line, the
    options. A last line that was cut off is removed. Raises UsageError where the options were others."""
    text = part.read_bytes() if part.exists() else b""
    whole = text.rfind(b"\n") + 1
    options = {k: v for k, v in config.to_json(cfg).items() if k not in CHANGEABLE}
    if not whole:
        part.write_text(json.dumps(options) + "\n")
        return {}
    os.truncate(part, whole)
    first, *lines = text[:whole].splitlines()
    try:
        old = json.loads(first)
        answers = {(a["way"], a["index"], a["sample"]): a["correct"] for a in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{part}: not the answers of an interrupted start; remove it to begin anew"
        ) from None
    changed = [
        f"--{k.replace('_', '-')} is {v}, was {old.get(k)}" for k, v in options.items() if old.get(k) != v
    ]
    if changed:
        raise UsageError(
            f"{part} was begun with other options: {'; '.join(changed)}; give those to go on, or remove it"
        )
    return answers


def answer(
    model: Qwen,
    tokenizer: Tokenizer,
    asked: Sequence[Problem],
    cfg: Config,
    sandbox: Sandbox | None,
    answers: Answers,
    part: Path,
) -> None:
    """Give the answers that `answers` lacks, each added to it and appended to `part` when it is there. Which
    random numbers an answer has depends on the seed, the way, the question and the sample alone."""
    ways = chosen_ways(cfg.ways)
    encoders = [PromptEncoder(tokenizer, PROTOCOLS[WAYS[way]]) for way in ways]
    longest = cfg.max_prompt or max(len(encode(p.question)) for p in asked for encode in encoders)
    sampler = Sampler(model, cfg.slots, longest + cfg.max_tokens, temperature=cfg.temperature)
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    total, pause = len(asked) * len(ways) * cfg.samples, 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=total, initial=len(answers), desc="curriculum", mininterval=pause)
    with bar, open(part, "a") as file:
        for way in ways:
            number, protocol = list(WAYS).index(way), PROTOCOLS[WAYS[way]]

            def keep(episode: Episode, way: str = way) -> None:
                key = (way, episode.problem.index, episode.group % cfg.samples)
                answers[key] = episode.correct
                record = dict(zip(("way", "index", "sample"), key, strict=True))
                file.write(json.dumps(record | {"correct": episode.correct}) + "\n")
                file.flush()
                bar.update()

            wanted = [
                Request(p, place * cfg.samples + sample, key=(cfg.seed, 0, number, p.index, sample))
                for place, p in enumerate(asked)
                for sample in range(cfg.samples)
                if (way, p.index, sample) not in answers
            ]
            for i in range(0, len(wanted), BLOCK * cfg.slots):
                block = wanted[i : i + BLOCK * cfg.slots]
                rollout(sampler, tokenizer, block, protocol, sandbox, limits, on_finish=keep)


def row(problem: Problem, answers: Answers, ways: Sequence[str], samples: int) -> dict:
    """A question's line in the file: by_way counts the right ones of `samples` answers each."""
    by_way = {way: sum(answers[way, problem.index, i] for i in range(samples)) for way in ways}
    right, asked = sum(by_way.values()), samples * len(ways)
    shares = {"p": right / asked, "potential": potential(right, asked)}
    return {"task": problem.task, "index": problem.index, **shares, "samples": samples, "by_way": by_way}


def measure(cfg: Config) -> list[dict]:
    """Measure every question and write the file, whole or not at all; its lines. Raises UsageError."""
    ways = chosen_ways(cfg.ways)
    config.new_file(cfg.out, "--out")
    use_bbh(cfg.bbh)
    asked = questions(for_training(cfg.tasks, cfg.train_on_test_tasks), cfg.questions)
    if len(asked) < cfg.questions:
        print(f"--questions {cfg.questions}: these tasks gave no more than {len(asked)} different ones")
    out, part = Path(cfg.out), Path(f"{cfg.out}.part")
    answers = read_part(part, cfg)
    if answers:
        print(f"{part}: goes on after {len(answers)} answers")
    model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed)
    with open_sandbox(cfg.sandbox, cfg.timeout, cfg.preload) as sandbox:
        answer(model, tokenizer, asked, cfg, sandbox, answers, part)
    rows = [row(problem, answers, ways, cfg.samples) for problem in asked]
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
    temporary.replace(out)
    part.unlink()
    return rows


def table(rows: Sequence[dict]) -> str:
    """For people: right answers by way, and the questions of each stage."""
    asked = sum(r["samples"] for r in rows)
    shares = {way: sum(r["by_way"][way] for r in rows) / asked for way in rows[0]["by_way"]}
    lines = ["right answers: " + ", ".join(f"{way} {share:.3f}" for way, share in shares.items())]
    for number, (group, interval) in enumerate(zip(groups(rows), intervals(), strict=True), 1):
        lines.append(f"stage {number}: {len(group):6} questions with P in {interval}")
    return "\n".join(lines)


def groups(rows: Sequence[dict]) -> list[list[dict]]:
    """The questions that each stage adds: P in [.64, 1], [.48, .64), [.32, .48), [0, .32)."""
    found: list[list[dict]] = [[] for _ in BOUNDS]
    for r in rows:
        found[next(i for i, bound in enumerate(BOUNDS) if r["potential"] >= bound)].append(r)
    return found


def intervals() -> list[str]:
    """The groups' intervals, for people."""
    return ["[0.64, 1]"] + [f"[{low:g}, {high:g})" for high, low in zip(BOUNDS, BOUNDS[1:], strict=False)]


def by_difficulty(rows: Sequence[dict], sizes: Sequence[int], seed: int) -> list[list[dict]]:
    """The questions from easy to hard, by p, in groups of these sizes; equal ones in the seed's order."""
    mixed = list(rows)
    random.Random(f"difficulty {seed}").shuffle(mixed)
    left = iter(sorted(mixed, key=lambda r: -r["p"]))
    return [[next(left) for _ in range(size)] for size in sizes]


@dataclass(frozen=True)
class Stage:
    number: int  # 1 to 4
    questions: list[tuple[str, int]]  # task and index; those of the stages before among them


class Course:
    """Which questions a training step asks. It has no state: a step's questions follow from the file, the
    options and the step, so a resumed run asks what an uninterrupted one does, on any number of ranks.

    A stage goes through its questions again and again, each time in another order; when it ends, the next
    begins anew, with its larger set. A stage that would add no question is left out: the next follows in its
    place. The last stage lasts as long as the run.
    """

    def __init__(self, rows: Sequence[dict], order: str, stage_steps: int, prompts: int, seed: int):
        self.stage_steps, self.prompts, self.seed = stage_steps, prompts, seed
        content = [[r["task"], r["index"], r["p"], r["potential"]] for r in rows]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()  # a resumed run must have it
        added = [list(rows)] if order == "none" else groups(rows)
        if order == "difficulty":
            added = by_difficulty(rows, [len(group) for group in added], seed)
        self.empty = [number for number, group in enumerate(added, 1) if not group]
        self.stages: list[Stage] = []
        known: list[tuple[str, int]] = []
        for number, group in enumerate(added, 1):
            known = known + [(r["task"], r["index"]) for r in group]
            if group:
                self.stages.append(Stage(number, known))

    def stage(self, step: int) -> tuple[Stage, int]:
        """The stage of a step (from 0), and the step with which it begins."""
        place = min(step // self.stage_steps, len(self.stages) - 1)
        return self.stages[place], place * self.stage_steps

    def problems(self, step: int) -> list[Problem]:
        """The questions of a step."""
        stage, begin = self.stage(step)
        first, found, orders = (step - begin) * self.prompts, [], {}
        for i in range(first, first + self.prompts):
            turn, place = divmod(i, len(stage.questions))
            if turn not in orders:
                orders[turn] = list(stage.questions)
                random.Random(f"curriculum {self.seed} {stage.number} {turn}").shuffle(orders[turn])
            task, index = orders[turn][place]
            found.append(get(task).problem(index))
        return found

    def metrics(self, step: int) -> dict[str, int]:
        """A step's stage and how many questions it has, for the log."""
        stage = self.stage(step)[0]
        return {"stage": stage.number, "stage_questions": len(stage.questions)}

    def describe(self) -> str:
        """The stages, and those that are left out, in a line."""
        parts = [
            f"stage {s.number} from step {place * self.stage_steps + 1} with {len(s.questions)} questions"
            for place, s in enumerate(self.stages)
        ]
        left_out = [f"stage {n} left out: no question has P in {intervals()[n - 1]}" for n in self.empty]
        return "curriculum: " + "; ".join(parts + left_out)


def read(path: str, test_tasks: bool = False) -> list[dict]:
    """The lines of a file that `measure` wrote: task, index, p, potential. Raises UsageError naming file and
    line where one is none, its question is not for training, or stands there twice."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--curriculum {path}: {error}; expected a file of curriculum.py") from None
    rows: list[dict] = []
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, 1):
        where = f"--curriculum {path}, line {number}"
        rows.append(_row(line, where, test_tasks))
        key = (rows[-1]["task"], rows[-1]["index"])
        if key in seen:
            raise UsageError(f"{where}: the question of line {seen[key]} again; expected each once")
        seen[key] = number
    if not rows:
        raise UsageError(f"--curriculum {path}: no questions in it; expected a file of curriculum.py")
    return rows


def _row(line: str, where: str, test_tasks: bool) -> dict:
    """One line of the file, checked."""
    try:
        found = json.loads(line)
        task, index, p, worth = (found[name] for name in ("task", "index", "p", "potential"))
        good = isinstance(task, str) and type(index) is int and 0 <= p <= 1
        good = good and abs(4 * p * (1 - p) - worth) < 1e-6
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UsageError(
            f"{where}: {line:.80}; expected a line of curriculum.py with task, index, p in [0, 1] and "
            "potential = 4p(1 - p)"
        )
    try:
        missing = get(task).missing
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if missing:
        raise UsageError(f"{where}: {task}: {missing}")
    if split_of(task) == "test" and not test_tasks:
        raise UsageError(
            f"{where}: {task} is held out for the evaluation; --train-on-test-tasks trains on it all the same"
        )
    if index < RL_START:
        raise UsageError(f"{where}: question {index} is not for training; expected {RL_START} or above")
    return found


def check_order(cfg) -> None:
    """Refuse options of a training script that do not fit together. Raises UsageError."""
    if cfg.order not in ORDERS:
        raise UsageError(
            f"--order {cfg.order}{config.nearest(cfg.order, ORDERS)}; known: {', '.join(ORDERS)}"
        )
    if cfg.curriculum is None and cfg.order != "curriculum":
        raise UsageError(
            f"--order {cfg.order} without --curriculum; expected a file of curriculum.py to order"
        )


def plan_course(cfg, world: World) -> Course | None:
    """The course that a training script's options ask for, said in a line on stderr; None without a file.
    Raises UsageError."""
    if cfg.curriculum is None:
        return None
    rows = read(cfg.curriculum, cfg.train_on_test_tasks)
    course = Course(rows, cfg.order, cfg.stage_steps, cfg.prompts, cfg.seed)
    if world.main:
        print(course.describe(), file=sys.stderr)
    return course


def main() -> None:
    cfg = config.parse(Config, __doc__)
    print(f"{table(measure(cfg))}\n{cfg.out}")


if __name__ == "__main__":
    config.run(main)
