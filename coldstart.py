"""Trajectories for supervised fine-tuning, from four sources, as the file that sft.py --data reads.

    python coldstart.py --source programs --tasks symbench,bbh --per-task 70 --out FILE
    python coldstart.py --source model --model DIR --tasks symbench --out FILE
    python coldstart.py --source endpoint --url http://localhost:8000/v1 --model NAME --tasks bbh --out FILE
    python coldstart.py --source rewrite --data solutions.jsonl --model DIR --out FILE     # or --url and NAME
    python coldstart.py check FILE

    programs   the tasks' reference programs, in the shapes of trajectories/shapes.py
    model      our sampler on a checkpoint, in four styles of prompting
    endpoint   a teacher behind an OpenAI-compatible address, with our sandbox
    rewrite    a teacher rewrites solutions in words with programs and their results (ReTool, 2504.11536)

A trajectory is kept only if its answer is right, its programs give the stored results again, and evaluation
does not ask its question. A task keeps at most --per-task trajectories (rewrite: all). Those with several
programs come first, up to the share --multi-turn (R1-Code-Interpreter, 2505.21668: 6.5k trajectories, at most
70 per task, multi-turn favoured). The report counts the dropped ones by reason (trajectories/faults.py).

model, endpoint and rewrite keep each outcome in FILE.part: after a kill, the same command goes on from there.
With `torchrun --nproc_per_node 8 coldstart.py --source model` the questions are shared over the GPUs.
"""

import dataclasses
import functools
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from plumbing import config
from plumbing.config import UsageError, option
from plumbing.journal import Journal, new_file, remove_parts
from plumbing.progress import progress
from plumbing.ranks import World
from rollout import Limits, Request
from sandbox import Sandbox
from tasks import for_training, get_protocol, use_bbh
from training.evaluation import answer_all, answer_key
from training.interpreter import open_sandbox
from training.limits import PromptLimit
from training.loading import load_model
from training.options import ModelOptions, Prompting, Ranks, Sampling, SandboxOptions, TrainingQuestions
from trajectories import checks
from trajectories.endpoint import Endpoint, EndpointOptions
from trajectories.faults import Fault
from trajectories.ledger import Ledger
from trajectories.programs import carry_out, with_programs
from trajectories.questions import open_questions, to_ask
from trajectories.records import write
from trajectories.shapes import WORDS, draft
from trajectories.sources import STYLES, environments, from_episode, keep_right, to_rewrite
from trajectories.teachers import answer_with, gather, local_teacher, read_solutions, remote_teacher, rewrite

PER_TASK = 70  # R1-Code-Interpreter's
NEEDED = {"programs": (), "model": ("model",), "endpoint": ("url", "model"), "rewrite": ("data", "model")}


@dataclass(frozen=True)
class Config(
    TrainingQuestions, Prompting, Limits, Sampling, EndpointOptions, ModelOptions, SandboxOptions, Ranks
):
    """Cold start."""

    source: str = option("programs", "where trajectories come from: " + ", ".join(NEEDED))
    per_task: int | None = option(None, "most trajectories of a task; by default 70 (rewrite: all)", least=1)
    multi_turn: float = option(0.8, "wanted share with two or more programs", least=0, most=1)
    evaluation: int = option(
        1000, "evaluation questions of a task that none may repeat", least=0, most=10_000
    )
    data: str | None = option(None, "for rewrite: JSON lines with a solution; see docs/coldstart.md")
    styles: str = option(",".join(STYLES), "for model and endpoint: styles of prompting")
    samples: int = option(1, "for model and endpoint: answers per question and style", least=1)
    seed: int = option(0, "shapes, phrasings, slips, sampling", least=0)
    out: str = option("trajectories.jsonl", "file to write; a new one")
    model: str | None = option(None, "checkpoint folder; with --url the server's name of the model")
    max_tokens: int = option(1024, "tokens of an answer, the interpreter's included", least=1)
    slots: int = option(64, "answers sampled at once; with --url, requests at once", least=1)


# -- the four sources ------------------------------------------------------------------------------


def from_reference_programs(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """Up to --per-task trajectories of each task. Further questions replace dropped ones, in four rounds."""
    questions = open_questions(with_programs(tasks, cfg.protocol, WORDS), cfg)
    for round in range(4):
        drafts = []
        for task, stream in questions.items():
            lacking = cfg.per_task - len(ledger.kept[task])
            rng = random.Random(f"coldstart {cfg.seed} {task} {round}")
            for problem in stream.take(lacking, 4 * lacking) if lacking else ():
                made = draft(problem, cfg.multi_turn, rng, cfg.protocol)
                drafts += [made] if made else []
        for made, outcome in progress(len(drafts), f"round {round + 1}", carry_out(drafts, sandbox)):
            ledger.add(made.problem.task, outcome)
    for task, stream in questions.items():
        ledger.add(task, *stream.faults)


def from_model(world: World, cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """Rejection sampling: --per-task questions of each task, each answered --samples times in every style."""
    # generated once: all cores do that already
    asked = world.gather(to_ask(tasks, cfg) if world.main else [])
    model, tokenizer = load_model(cfg.model, world, cfg.dtype)
    jobs = []
    for number, (name, environment) in enumerate(environments(cfg, sandbox, tokenizer).items()):
        fits = PromptLimit(environment, cfg.max_prompt)
        for problem in itertools.filterfalse(fits, asked):
            ledger.add(problem.task, Fault("long"))
        requests = {
            f"{p.task} {p.index} {name} {sample}": Request(p, place, key=(cfg.seed, number, place, sample))
            for place, p in enumerate(filter(fits, asked))
            for sample in range(cfg.samples)
        }
        jobs.append((environment, requests))
    journal = Journal(cfg.out, about(cfg), world.rank)
    outcomes = answer_all(model, cfg, world, jobs, from_episode, journal, name="model")
    problems = {key: request.problem for _, requests in jobs for key, request in requests.items()}
    keep_right({key: (problems[key], outcomes[key]) for key in problems}, sandbox, world, ledger)


def from_endpoint(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """--per-task questions of each task, each answered --samples times in every style by a model behind
    HTTP."""
    styles = environments(cfg, sandbox)
    asked = to_ask(tasks, cfg)
    jobs = {
        answer_key(environment, p, f"{p.task} {p.index} {name} {sample}"): (p, environment)
        for sample in range(cfg.samples)
        for name, environment in styles.items()
        for p in asked
    }
    journal = Journal(cfg.out, about(cfg))
    with Endpoint(cfg.url, cfg.model, fields=cfg.url_fields, workers=cfg.slots) as endpoint:
        work = answer_with(endpoint, cfg.temperature)
        outcomes = gather(jobs, work, journal, threads=cfg.slots, endpoint=endpoint)
    for key, (problem, _) in jobs.items():
        ledger.add(problem.task, outcomes[key])


def from_solutions(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """The solutions of --data, rewritten by a checkpoint or by a model behind HTTP."""
    jobs = to_rewrite(read_solutions(cfg.data, cfg.train_on_test_tasks), cfg, ledger)
    journal = Journal(cfg.out, about(cfg))
    work = functools.partial(rewrite, protocol=cfg.protocol, sandbox=sandbox)
    if cfg.url:
        with Endpoint(cfg.url, cfg.model, fields=cfg.url_fields, workers=cfg.slots) as endpoint:
            work = functools.partial(work, remote_teacher(endpoint, cfg.max_tokens, cfg.temperature))
            outcomes = gather(jobs, work, journal, threads=cfg.slots, endpoint=endpoint)
    else:
        model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype)
        teacher = local_teacher(model, tokenizer, cfg.max_tokens, cfg.temperature, cfg.seed, cfg.slots)
        outcomes = gather(jobs, functools.partial(work, teacher), journal, size=cfg.slots)
    for key, (problem, _) in jobs.items():
        ledger.add(problem.task, outcomes[key])


def about(cfg: Config) -> dict:
    """The options that decide what is asked; the others may change between two starts of a command."""
    loose = {"out", "device", "slots", "multi_turn", "rank_timeout"}
    loose |= {f.name for f in dataclasses.fields(SandboxOptions)}
    return {name: value for name, value in config.to_json(cfg).items() if name not in loose}


# -- the command -----------------------------------------------------------------------------------


def check_options(cfg: Config, world: World) -> None:
    """Refuse options that cannot work. Raises UsageError."""
    config.one_of("--source", cfg.source, NEEDED)
    get_protocol(cfg.protocol)
    if world.size > 1 and cfg.source != "model":
        raise UsageError(f"--source {cfg.source} has one process; start it without torchrun")
    if world.main:
        new_file(cfg.out, "--out")
    world.barrier()
    for name in NEEDED[cfg.source]:
        if getattr(cfg, name) is None:
            raise UsageError(f"--source {cfg.source} needs --{name}")
    for flag, path in (("--prompt-file", cfg.prompt_file), ("--system-file", cfg.system_file)):
        if path and (cfg.source in ("programs", "rewrite") or "free" not in cfg.styles):
            raise UsageError(f"{flag}: only the style free of --source model and endpoint has it")


def make(cfg: Config, world: World) -> None:
    """Write the trajectories of --source to --out, and print the report. Raises UsageError."""
    check_options(cfg, world)
    if cfg.per_task is None and cfg.source != "rewrite":
        cfg = dataclasses.replace(cfg, per_task=PER_TASK)
    use_bbh(cfg.bbh)
    tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
    sources = {"programs": from_reference_programs, "endpoint": from_endpoint, "rewrite": from_solutions}
    sources["model"] = functools.partial(from_model, world)
    ledger = Ledger()
    with open_sandbox(cfg, cfg.timeout, quiet=not world.main) as sandbox:
        sources[cfg.source](cfg, tasks, sandbox, ledger)
    if not world.main:
        return
    ledger.choose(cfg.per_task, cfg.multi_turn)
    print("\n".join(ledger.report()))
    records = [record for found in ledger.kept.values() for record in found]
    if not records:
        raise UsageError("no trajectory was kept; the table above says why")
    random.Random(f"order {cfg.seed}").shuffle(records)
    count = write(records, cfg.out)
    remove_parts(cfg.out)
    several = sum(r["turns"] > 2 for r in records) / count
    print(f"{count} trajectories -> {cfg.out}; {several:.0%} with two or more programs")


@dataclass(frozen=True)
class CheckConfig(SandboxOptions):
    """Check."""

    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    timeout: float = option(5.0, "seconds per program, as when the file was made", above=0)


def main() -> None:
    if sys.argv[1:2] == ["check"]:
        named = [word for word in sys.argv[2:3] if not word.startswith("-")]
        cfg = config.parse(CheckConfig, __doc__, sys.argv[2 + len(named) :])
        if not named:
            raise UsageError("expected: coldstart.py check FILE")
        use_bbh(cfg.bbh)
        with open_sandbox(cfg, cfg.timeout) as sandbox:
            if checks.report(sys.argv[2], sandbox, cfg.timeout):
                sys.exit(1)
    else:
        cfg = config.parse(Config, __doc__, first=("source", "tasks", "out"))
        with World(cfg.device if cfg.source == "model" else "cpu", cfg.rank_timeout, graceful=False) as world:
            make(cfg, world)


if __name__ == "__main__":
    config.run(main)
