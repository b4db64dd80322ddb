"""The whole loop on a model small enough for two CPU cores: base -> SFT -> GRPO -> evaluation.

    python demo.py                      about 7 minutes; everything lies in runs/demo afterwards
    python demo.py --seed 1 --out runs/demo-1
    python demo.py --model models/coder-0.5b --out runs/real      a real model: see analysis/real.py

Each stage is one of the real scripts with its options, as anyone would call it:

    base    sft.py on a documented mixture of ways to answer, right and wrong: a pretrained model's habits
    sft     sft.py on few right trajectories
    grpo    grpo.py, rewarded by the outcome of real programs
    evaluation    the base model in text only, and all three, on the same new questions

The mixture (toy.MIXTURE) stands in for pretraining. A random model solves nothing. A model that has seen only
right answers has no habit that reinforcement learning could change. The base gets eight of sixteen operations
wrong most of the time: for "Subtract 5" it writes 5 - v. SFT does not repair all of them. RL does, and an
operation that it repairs is right in unseen tasks too.
"""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import grpo
import sft
from analysis import plot, real
from analysis.printing import changed, show, table
from analysis.stages import Stage, run_stages, trained
from episode import Episode
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from sandbox import Sandbox
from tasks import Problem, names, select
from tokenizer import Tokenizer
from training import evaluation
from training.evaluation import Answering
from training.interpreter import open_sandbox
from training.loading import load_model
from training.options import SandboxOptions
from training.questions import problems
from training.reinforcement import make_environment
from trajectories.habits import mixture
from trajectories.programs import execute, from_programs
from trajectories.records import write

SHAPE = {"max_prompt": 128, "max_tokens": 192}  # about 40 tokens of prompt and 45 of answer are usual
FACTS = 6  # trajectories for SFT of each kind of fact
SETS = {"seen_tasks": ("train", 321), "unseen_tasks": ("test", 296), "facts": (None, 75)}  # split, questions
STAGES = {  # name -> what it does, minutes on two idle cores
    "base": ("learns habits, right and wrong", 3.3),
    "sft": ("learns from few right trajectories", 0.1),
    "grpo": ("learns from the outcome of its programs", 1.9),
}


@dataclass(frozen=True)
class Config(SandboxOptions):
    """The embedded run."""

    out: str = option("runs/demo", "folder for all stages")
    model: str | None = option(None, "a real model's folder instead: real tasks, hours on two CPU cores")
    seed: int = option(0, "weights, data and sampling", least=0)
    base_examples: int = option(16_000, "trajectories of the base mixture", least=1)
    base_steps: int = option(900, "steps of base training, 32 trajectories each", least=1)
    sft_examples: int | None = option(
        None, "right trajectories for SFT; by default 24, with --model 1,024 (6,400 on a GPU)", least=1
    )
    grpo_steps: int | None = option(
        None, "GRPO steps; by default 40 of 24 questions, with --model 24 of 16 (on a GPU 20 of 64)", least=1
    )
    questions: int = option(680, "with --model: questions of unseen tasks, for each evaluation", least=34)
    resume: bool = option(False, "go on with an interrupted run in --out")
    preload: str = option("", "modules imported before any program runs; these programs need none")


# -- the stages ------------------------------------------------------------------------------------


def write_data(cfg: Config, folder: Path, sandbox: Sandbox) -> None:
    """base.jsonl, the mixture, and sft.jsonl, few right trajectories; every program is really run."""
    if not (folder / "base.jsonl").exists():
        write(
            execute(list(mixture(cfg.base_examples, cfg.seed)), sandbox, only_right=False),
            folder / "base.jsonl",
        )
    drafts = from_programs(names("toy", "train"), "r1ci", 1, 0.2, cfg.seed)[: cfg.sft_examples or 24]
    drafts += from_programs(names("facts"), "r1ci", FACTS, 0.0, cfg.seed)
    write(execute(drafts, sandbox), folder / "sft.jsonl")


def stages(cfg: Config, folder: Path) -> dict[str, tuple[Callable, object]]:
    """Name -> (a script's train, its options); run in this order."""
    common = {field.name: getattr(cfg, field.name) for field in fields(SandboxOptions)}
    common |= {"seed": cfg.seed, "micro_tokens": 4096, "resume": True}
    return {
        "base": (
            sft.train,
            sft.Config(
                data=str(folder / "base.jsonl"),
                steps=cfg.base_steps,
                lr=3e-3,
                save_every=100,
                out=str(folder / "base"),
                **common,
            ),
        ),
        "sft": (
            sft.train,
            sft.Config(
                model=str(folder / "base" / "final"),
                data=str(folder / "sft.jsonl"),
                batch=16,
                lr=5e-4,
                out=str(folder / "sft"),
                **common,
            ),
        ),
        "grpo": (
            grpo.train,
            grpo.Config(
                model=str(folder / "sft" / "final"),
                tasks="toy,facts,facts,facts,facts",  # one question in ten is a fact
                reward="cost",
                steps=cfg.grpo_steps or 40,
                prompts=24,
                lr=3e-4,
                slots=192,
                eval_every=8,
                eval_tasks="toy",
                eval_temperature=1.0,
                out=str(folder / "grpo"),
                **SHAPE,
                **common,
            ),
        ),
    }


@functools.cache
def evaluation_questions(most: int = 1000) -> dict[str, list[Problem]]:
    """The same new questions for every stage, no two alike, at most so many of each set."""
    return {
        name: evaluation.questions(names("facts") if split is None else names("toy", split), min(count, most))
        for name, (split, count) in SETS.items()
    }


def check_disjoint(cfg: Config, folder: Path, asked: dict[str, list[Problem]]) -> str:
    """Go through all questions that a stage is trained on. Raises RuntimeError if one of them is also an
    evaluation question, or comes from an unseen task; returns what was checked, in a line."""
    trained = {}  # question -> task
    for file in ("base.jsonl", "sft.jsonl"):
        for line in (folder / file).read_text().splitlines():
            record = json.loads(line)
            trained[record["messages"][0]["content"]] = record["task"]
    options = stages(cfg, folder)["grpo"][1]
    for step in range(options.steps):
        for p in problems(select(options.tasks, "train"), step, options.prompts, options.seed):
            trained[p.question] = p.task
    evaluated = {p.question for questions in asked.values() for p in questions}
    both, leaked = evaluated & trained.keys(), set(trained.values()) & set(names("toy", "test"))
    if both or leaked:
        raise RuntimeError(f"evaluation is not clean: {len(both)} questions were trained on, tasks {leaked}")
    return (
        f"none of the {len(evaluated)} questions is among the {len(trained)} that were trained on, "
        "and none of those is from one of the 37 unseen tasks"
    )


def measure(
    folder: Path, options: dict, asked: dict[str, list[Problem]], sandbox: Sandbox
) -> tuple[dict, list[Episode], Tokenizer]:
    """A row of the summary, sampled at temperature 1 and greedy; and the sampled episodes of all sets.
    options: protocol, seed and limits."""
    world = World()
    model, tokenizer = load_model(str(folder), world, "auto")
    row, kept = {}, []
    for name, questions in asked.items():
        answers = []
        for temperature in (1.0, 0.0):
            cfg = Answering(temperature=temperature, samples=1, top_p=1.0, slots=192, **options)
            environment = make_environment(cfg, cfg, tokenizer, sandbox)
            answers.append(evaluation.answer(model, environment, questions, cfg, world))
        sampled, greedy = answers
        kept += sampled
        s = evaluation.summary(sampled)
        row[name] = {"sampled": s["accuracy"], "greedy": evaluation.summary(greedy)["accuracy"]}
        row[name] |= {key: s[key] for key in ("stderr", "code_ratio", "calls")}
    return row, kept, tokenizer


def check(cfg: Config, folder: Path) -> None:
    """Refuse options that cannot work. Raises UsageError."""
    if folder.is_file():
        raise UsageError(f"--out {folder}: a file is in the way; expected a folder")
    if folder.exists() and not cfg.resume:
        raise UsageError(f"--out {folder} exists; expected a new folder, or --resume to go on with it")
    path = folder / "config.json"
    if path.exists() and (others := config.differences(cfg, path, ignore=["resume", "out"])):
        raise UsageError(f"--resume {folder}: {'; '.join(others)}; give the run's own options")
    if not cfg.model and (cfg.sft_examples or 0) > 107:
        raise UsageError(f"--sft-examples {cfg.sft_examples}: at most 107, one of each training task")
    for name in ("base_examples", "base_steps", "preload") if cfg.model else ("questions",):
        if getattr(cfg, name) != getattr(Config, name):
            raise UsageError(
                f"--{name.replace('_', '-')}: has no effect {'with' if cfg.model else 'without'} --model; "
                "leave it out"
            )
    if cfg.model:
        load_model(cfg.model, World(), "auto")  # raises UsageError before hours have passed


def embedded(cfg: Config, folder: Path) -> dict:
    """All stages on the embedded model; the summary, which is printed too."""
    if not (folder / "sft.jsonl").exists():
        print("data: runs the programs of all trajectories, less than a minute")
        began = time.perf_counter()
        with open_sandbox(cfg, quiet=True) as sandbox:
            write_data(cfg, folder, sandbox)
        config.write_text(folder / "seconds.json", json.dumps({"data": time.perf_counter() - began}))
    found = []
    for name, (train, options) in stages(cfg, folder).items():
        made, script = folder / name / "final", train.__module__
        found.append(Stage(name, *STAGES[name], script, train, options, made, trained))
    seconds = run_stages(found, folder)
    began = time.perf_counter()
    asked = evaluation_questions()
    about = "asks every stage the same new questions, less than a minute"
    print(f"\nevaluation: {about}; {check_disjoint(cfg, folder, asked)}")
    rows, episodes = {}, {}
    with open_sandbox(cfg, quiet=True) as sandbox:
        for stage, protocol in (("base_text", "text"), ("base", "r1ci"), ("sft", "r1ci"), ("grpo", "r1ci")):
            model = folder / stage.removesuffix("_text") / "final"
            options = {"protocol": protocol, "seed": cfg.seed, **SHAPE}
            rows[stage], episodes[stage], tokenizer = measure(model, options, asked, sandbox)
    seconds["evaluation"] = time.perf_counter() - began
    show(changed(episodes["sft"], episodes["grpo"]), tokenizer)
    print("\n" + table(rows))
    return {"questions": sum(map(len, asked.values())), "seconds": seconds, "stages": rows}


def main() -> None:
    cfg = config.parse(Config, __doc__)
    folder = Path(cfg.out)
    check(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_sandbox(cfg) as sandbox:
        found = {"sandbox": {"level": sandbox.level, "layers": sandbox.layers}}
    config.write(cfg, folder / "config.json", found)
    summary = {"seed": cfg.seed} | (real.run(cfg, folder) if cfg.model else embedded(cfg, folder))
    config.write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    seconds = summary["seconds"]
    each = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items())
    print(f"seconds: {each}; {sum(seconds.values()):.0f} in all")
    picture = plot.draw([folder / "grpo"], folder / "demo.png")
    print(f"picture: {picture}; numbers: {folder / 'summary.json'}")


if __name__ == "__main__":
    config.run(main)
