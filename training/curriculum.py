"""Curriculum by improvement potential: first the questions that a model can learn most from (2505.21668).

    python -m training.curriculum --model runs/sft/final --tasks toy --questions 400 --out curriculum.jsonl
    torchrun --nproc_per_node 8 -m training.curriculum ...        # the questions are shared over the GPUs
    python grpo.py --model runs/sft/final --curriculum curriculum.jsonl --stage-steps 150 --out runs/grpo

The first command (the second on several GPUs) answers each question in four ways, with five samples each:

    text      in words alone
    code      by reasoning, then a program, always
    free      as the model likes
    guided    free; after an answer, one more question asks for a check by the other way

It writes a line per question: p, the share of right answers, and the potential P = 4p(1 - p), which is 1
where half of the answers are right and 0 where all or none are. The paper's guide is a trained model; here
its question is fixed. The paper's five samples have different temperatures: --preset r1ci sets five, whose
values are ours. A model that is never right in one way and nearly always in another has P near 1 on
every question: --ways free --samples 20 measures what training itself samples.

Training takes such a file in stages (training/course.py): questions with P in [.64, 1], then those in
[.48, .64) join, then [.32, .48), then the rest. The paper's groups have equal sizes: --order equal cuts the
questions, sorted by P, into four groups of the same size. To compare with: --order difficulty sorts them from
easy to hard, by p, into stages of the sizes that the intervals have; --order none has one stage of all.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from episode import Episode
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.journal import Journal, finish, new_file
from plumbing.ranks import World
from rollout import Environment, Limits, Request
from sandbox import Sandbox
from tasks import PROTOCOLS, RL_START, Problem, for_training, get, use_bbh
from tokenizer import Tokenizer
from training.course import groups, intervals
from training.evaluation import answer_all
from training.interpreter import open_sandbox
from training.limits import PromptLimit
from training.loading import load_model
from training.options import ModelOptions, Ranks, Sampling, SandboxOptions, TrainingQuestions
from training.papers import CURRICULUM

WAYS = {"text": "text", "code": "code", "free": "r1ci", "guided": "guided"}  # way of answering -> protocol


@dataclass(frozen=True)
class Config(TrainingQuestions, Sampling, Limits, ModelOptions, SandboxOptions, Ranks):
    """Measuring."""

    questions: int = option(400, "in all, spread evenly over the tasks; no two alike", least=1)
    ways: str = option(",".join(WAYS), "of answering; free alone: as training with --protocol r1ci samples")
    temperatures: str | None = option(
        None, "of a question's samples in turn, for --temperature (R1-Code-Interpreter: different ones)"
    )
    samples: int = option(5, "answers per question and way; 5 x 4 ways (R1-Code-Interpreter)", least=1)
    seed: int = option(0, "sampling; weights of tiny", least=0)
    out: str = option("curriculum.jsonl", "new file; FILE.part holds the answers until all are given")


# what a start that goes on may change
CHANGEABLE = frozenset({"out", "slots", "device", "workers", "rank_timeout"})


def potential(right: int, samples: int) -> float:
    """P = 4p(1 - p) for p = right / samples, divided once: a question on a bound lies exactly on it.

    >>> potential(16, 20), 4 * 0.8 * (1 - 0.8)
    (0.64, 0.6399999999999999)
    """
    return 4 * right * (samples - right) / samples**2


# -- measuring -------------------------------------------------------------------------------------


def chosen_ways(ways: str) -> list[str]:
    """The ways of answering that --ways names, in the order of WAYS. Raises UsageError."""
    found = [way.strip() for way in ways.split(",") if way.strip()]
    for way in found:
        config.one_of("--ways", way, WAYS)
    if not found:
        raise UsageError(f"--ways {ways!r} names none; expected some of {', '.join(WAYS)}")
    return [way for way in WAYS if way in found]


def questions(
    tasks: Sequence[str], count: int, fits: Callable[[Problem], bool] = lambda problem: True
) -> list[Problem]:
    """`count` different questions for reinforcement learning, the tasks in turn, no number twice; fewer where
    100 x `count` draws do not give as many that fit."""
    found: dict[str, Problem] = {}
    for i in range(100 * count):
        problem = get(tasks[i % len(tasks)]).problem(RL_START + i)
        if fits(problem):
            found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


def key_of(way: str, index: int, sample: int) -> str:
    """An answer's key in the journal."""
    return f"{way} {index} {sample}"


def ways_of_answering(tokenizer: Tokenizer, cfg: Config, sandbox: Sandbox | None) -> dict[str, Environment]:
    """The environment of each way in --ways."""
    return {way: Environment(tokenizer, PROTOCOLS[WAYS[way]], sandbox, cfg) for way in chosen_ways(cfg.ways)}


def temperatures(cfg: Config) -> list[float]:
    """The temperature of each sample of a question. Raises UsageError."""
    if cfg.temperatures is not None and cfg.temperature != Config.temperature:
        both = f"--temperature {cfg.temperature:g} beside --temperatures {cfg.temperatures}"
        raise UsageError(f"{both}; expected --temperatures alone, which a preset may have set")
    try:
        given = [float(t) for t in (cfg.temperatures or str(cfg.temperature)).split(",")]
    except ValueError:
        given = []
    if not given or not all(0 < t < math.inf for t in given):
        name = "temperature" if cfg.temperatures is None else "temperatures"
        raise UsageError(f"--{name} {getattr(cfg, name)}: samples must differ; expected numbers above 0")
    return [given[i % len(given)] for i in range(cfg.samples)]


def requests(way: str, asked: Sequence[Problem], samples: Sequence[int], seed: int) -> dict[str, Request]:
    """A request for each of these samples of each question, by key. The random numbers of an answer depend on
    the seed, the way, the question and the sample alone."""
    number = list(WAYS).index(way)
    return {
        key_of(way, p.index, sample): Request(p, place, key=(seed, 0, number, p.index, sample))
        for place, p in enumerate(asked)
        for sample in samples
    }


def correct(episode: Episode, environment: Environment) -> bool:
    """What is kept of an episode."""
    return episode.correct


def row(problem: Problem, answers: dict[str, bool], ways: Sequence[str], samples: int) -> dict:
    """A question's line in the file: by_way counts the right ones of `samples` answers each."""
    by_way = {way: sum(answers[key_of(way, problem.index, i)] for i in range(samples)) for way in ways}
    right, asked = sum(by_way.values()), samples * len(ways)
    shares = {"p": right / asked, "potential": potential(right, asked)}
    return {"task": problem.task, "index": problem.index, **shares, "samples": samples, "by_way": by_way}


def measure(cfg: Config, world: World) -> list[dict]:
    """Measure every question and write the file, whole or not at all; its lines. Raises UsageError."""
    ways = chosen_ways(cfg.ways)
    by_sample = temperatures(cfg)
    if world.main:
        new_file(cfg.out, "--out")
    world.barrier()
    use_bbh(cfg.bbh)
    tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed)
    limits = [PromptLimit(e, cfg.max_prompt) for e in ways_of_answering(tokenizer, cfg, None).values()]
    asked = questions(tasks, cfg.questions, lambda problem: all(fits(problem) for fits in limits))
    too_long = sum(fits.left_out for fits in limits)
    if too_long and world.main:
        print(f"--max-prompt {cfg.max_prompt}: left out {too_long} questions with longer prompts")
    if not asked:
        raise UsageError(f"--max-prompt {cfg.max_prompt}: all prompts are longer; raise it")
    if len(asked) < cfg.questions and world.main:
        print(f"--questions {cfg.questions}: these tasks gave no more than {len(asked)} different ones")
    options = {k: v for k, v in config.to_json(cfg).items() if k not in CHANGEABLE}
    journal = Journal(cfg.out, options, world.rank)
    if journal.entries and world.main:
        print(f"{journal.path}: goes on after {len(journal.entries)} answers")
    with open_sandbox(cfg, cfg.timeout, quiet=not world.main) as sandbox:
        environments = ways_of_answering(tokenizer, cfg, sandbox)
        answers: dict[str, bool] = {}
        for temperature in dict.fromkeys(by_sample):
            samples = [sample for sample, other in enumerate(by_sample) if other == temperature]
            jobs = [(env, requests(way, asked, samples, cfg.seed)) for way, env in environments.items()]
            one, name = replace(cfg, temperature=temperature), f"temperature {temperature:g}"
            answers |= answer_all(model, one, world, jobs, correct, journal, name=name)
    rows = [row(problem, answers, ways, cfg.samples) for problem in asked]
    if world.main:
        finish(cfg.out, "".join(json.dumps(r) + "\n" for r in rows))
    return rows


def table(rows: Sequence[dict]) -> str:
    """For people: right answers by way, and the questions of each stage."""
    asked = sum(r["samples"] for r in rows)
    shares = {way: sum(r["by_way"][way] for r in rows) / asked for way in rows[0]["by_way"]}
    lines = ["right answers: " + ", ".join(f"{way} {share:.3f}" for way, share in shares.items())]
    for number, (group, interval) in enumerate(zip(groups(rows), intervals(), strict=True), 1):
        lines.append(f"stage {number}: {len(group):6} questions with P in {interval}")
    return "\n".join(lines)


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=CURRICULUM, first=("model", "tasks", "questions"))
    with World(cfg.device, cfg.rank_timeout, graceful=False) as world:
        rows = measure(cfg, world)
    if world.main:
        print(f"{table(rows)}\n{cfg.out}")


if __name__ == "__main__":
    config.run(main, "training.curriculum")
