"""The whole loop on a model small enough for two CPU cores: base -> SFT -> GRPO -> evaluation.

    python demo.py                      about 8 minutes; everything lies in runs/demo afterwards
    python demo.py --seed 1 --out runs/demo-1

Each stage is one of the real scripts with its options, as anyone would call it:

    base    sft.py on a documented mixture of ways to answer, right and wrong: a pretrained model's habits
    sft     sft.py on few right trajectories
    grpo    grpo.py, rewarded by the outcome of real programs
    evaluation    the base model in text only, and all three, on the same new questions

The mixture (toy.MIXTURE) stands in for pretraining. A random model solves nothing. A model that has seen only
right answers has no habit that reinforcement learning could change. The base mistakes eight of sixteen
operations most of the time: for "Subtract 5" it writes 5 - v. Few right trajectories do not cure that
everywhere. The reward of real programs does, and an operation is cured in unseen tasks too.
"""

import itertools
import json
import random
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpo
import sft
from analysis import plot
from analysis.transcripts import metrics
from episode import Episode, spans
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from sandbox import Sandbox
from tasks import SFT_START, Problem, Task, names, select, toy, words
from tokenizer import Source, Tokenizer
from training import evaluation
from training.evaluation import Answering
from training.interpreter import open_sandbox
from training.loading import load_model
from training.options import SandboxOptions
from training.questions import problems
from training.reinforcement import make_environment
from trajectories.programs import Draft, execute, from_programs, with_crash
from trajectories.records import write

SHAPE = {"max_prompt": 128, "max_tokens": 192}  # tokens; an episode of these tasks has about 40 + 45
FACTS = 6  # trajectories for SFT of each kind of fact
SETS = {"seen_tasks": ("train", 642), "unseen_tasks": ("test", 592), "facts": (None, 150)}  # split, questions
ABOUT = {  # what each stage does, and its time on two idle cores
    "data": "runs the programs of all trajectories, less than a minute",
    "base": "learns habits, right and wrong, about 4 minutes",
    "sft": "learns from few right trajectories, some seconds",
    "grpo": "learns from the outcome of its programs, about 2 minutes",
    "evaluation": "asks every stage the same new questions, between one and two minutes",
}


@dataclass(frozen=True)
class Config(SandboxOptions):
    """The embedded run."""

    out: str = option("runs/demo", "folder for all stages")
    seed: int = option(0, "weights, data and sampling", least=0)
    base_examples: int = option(16_000, "trajectories of the base mixture", least=1)
    base_steps: int = option(900, "steps of base training, 32 trajectories each", least=1)
    sft_examples: int = option(
        24, "right trajectories for SFT, each of another training task", least=1, most=107
    )
    grpo_steps: int = option(40, "GRPO steps of 24 questions x 8 episodes", least=1)
    resume: bool = option(False, "go on with an interrupted run in --out")
    preload: str = option("", "modules imported before any program runs; these programs need none")


# -- the base model's data -------------------------------------------------------------------------


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


# -- the stages ------------------------------------------------------------------------------------


def write_data(cfg: Config, folder: Path, sandbox: Sandbox) -> None:
    """base.jsonl, the mixture, and sft.jsonl, few right trajectories; every program is really run."""
    if not (folder / "base.jsonl").exists():
        write(
            execute(list(mixture(cfg.base_examples, cfg.seed)), sandbox, only_right=False),
            folder / "base.jsonl",
        )
    drafts = from_programs(names("toy", "train"), "r1ci", 1, 0.2, cfg.seed)[: cfg.sft_examples]
    drafts += from_programs(names("facts"), "r1ci", FACTS, 0.0, cfg.seed)
    write(execute(drafts, sandbox), folder / "sft.jsonl")


def stages(cfg: Config, folder: Path) -> dict[str, tuple[Callable, object]]:
    """Name -> (a script's train, its options); run in this order."""
    common = {"seed": cfg.seed, "sandbox": cfg.sandbox, "micro_tokens": 2048, "resume": True}
    return {
        "base": (
            sft.train,
            sft.Config(
                data=str(folder / "base.jsonl"),
                steps=cfg.base_steps,
                lr=3e-3,
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
                steps=cfg.grpo_steps,
                prompts=24,
                lr=3e-4,
                slots=192,
                eval_every=8,
                eval_tasks="toy",
                eval_temperature=1.0,
                out=str(folder / "grpo"),
                preload="",
                **SHAPE,
                **common,
            ),
        ),
    }


def evaluation_questions() -> dict[str, list[Problem]]:
    """The same new questions for every stage, no two alike."""
    return {
        name: evaluation.questions(names("facts") if split is None else names("toy", split), count)
        for name, (split, count) in SETS.items()
    }


def check_disjoint(cfg: Config, folder: Path, asked: dict[str, list[Problem]]) -> str:
    """Go through every question of every training stream. Raises RuntimeError if one is evaluated too, or
    comes from an unseen task; returns what was checked, in a line."""
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
    folder: Path, protocol: str, asked: dict[str, list[Problem]], seed: int, sandbox: Sandbox
) -> tuple[dict, list[Episode], Tokenizer]:
    """One row of the summary, sampled at temperature 1 and greedy; the sampled episodes of all sets."""
    world = World()
    model, tokenizer = load_model(str(folder), world, "auto")
    options = {"protocol": protocol, "slots": 192, "seed": seed, **SHAPE}
    row, kept = {}, []
    for name, questions in asked.items():
        answers = []
        for temperature in (1.0, 0.0):
            cfg = Answering(temperature=temperature, **options)
            environment = make_environment(cfg, cfg, tokenizer, sandbox)
            answers.append(evaluation.answer(model, environment, questions, cfg, world))
        sampled, greedy = answers
        kept += sampled
        s = evaluation.summary(sampled)
        row[name] = {
            "sampled": s["accuracy"],
            "greedy": evaluation.summary(greedy)["accuracy"],
            "stderr": s["stderr"],
            "code_ratio": s["code_ratio"],
            "calls": s["calls"],
        }
    return row, kept, tokenizer


def table(rows: dict[str, dict]) -> str:
    """The summary for people: sampled / greedy, and how often code was used."""
    lines = [f"{'':10}" + "".join(f"{name.replace('_', ' '):>30}" for name in SETS)]
    lines.append(f"{'':10}" + f"{'sampled  greedy  code':>30}" * len(SETS))
    for stage, row in rows.items():
        cells = (f"{r['sampled']:.3f}   {r['greedy']:.3f}  {r['code_ratio']:.2f}" for r in row.values())
        lines.append(f"{stage:10}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def changed(before: Sequence[Episode], after: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """Up to three questions, with their episodes before and after RL: an unseen task that was wrong and is
    right now, one with a failed program before, a fact."""
    pairs = list(zip(before, after, strict=True))
    learnt = [(b, a) for b, a in pairs if a.correct and not b.correct]
    unseen = [p for p in learnt if p[0].problem.task in names("toy", "test") and p[0].calls]
    failed = [p for p in learnt if any(c.result.status == "error" for c in p[0].calls)]
    facts = [p for p in pairs if p[0].problem.task in names("facts")]
    return [kind[0] for kind in (unseen, failed, facts) if kind]


def lines(episode: Episode, tokenizer: Tokenizer, width: int) -> list[str]:
    """What follows the prompt, wrapped; "| " stands before what the interpreter wrote."""
    found = []
    for source, ids in spans(episode.tokens, episode.source):
        if source != Source.PROMPT:
            mark = "| " * (source == Source.TOOL)
            for line in tokenizer.decode(ids).strip("\n").split("\n"):
                found += textwrap.wrap(mark + line, width, subsequent_indent=mark) or [mark]
    return [*found, f"=> {'right' if episode.correct else 'wrong'}, reward {episode.reward:.2f}"]


def show(pairs: Sequence[tuple[Episode, Episode]], tokenizer: Tokenizer, width: int = 56) -> None:
    """Print the episodes of each question side by side."""
    for before, after in pairs:
        print(f"\n{before.problem.question}\n{'after SFT':{width}} | after GRPO")
        for left, right in itertools.zip_longest(
            lines(before, tokenizer, width), lines(after, tokenizer, width), fillvalue=""
        ):
            print(f"{left:{width}} | {right}")


def reached(folder: Path) -> str:
    """What a stage's log says of its end: the loss, or the reward at its begin and end."""
    lines = metrics(folder)
    rewards = [m["reward"] for m in lines if "reward" in m]
    if not rewards:
        return f"{lines[-1]['step']} steps, loss {lines[-1]['loss']:.3f}"
    return f"{len(rewards)} steps, reward {rewards[0]:.2f} -> {sum(rewards[-5:]) / len(rewards[-5:]):.2f}"


def run_stages(cfg: Config, folder: Path, world: World) -> dict[str, float]:
    """Train what is not trained yet; seconds per stage, kept in the folder so that a resumed run adds up."""
    clock = folder / "seconds.json"
    seconds = json.loads(clock.read_text()) if clock.exists() else {}
    for name, (train, options) in stages(cfg, folder).items():
        if (folder / name / "final").exists():
            continue
        print(f"\n{name}: {ABOUT[name]}\n{train.__module__}.py {config.command(options)}")
        began = time.perf_counter()
        train(options, world)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
        clock.write_text(json.dumps(seconds))
        if world.stopping:
            print(f"stopped during {name}; `make demo`, or demo.py with --resume, goes on")
            sys.exit(0)
        print(f"{name}: {reached(folder / name)}, {seconds[name]:.0f} s")
    return seconds


def main() -> None:
    cfg = config.parse(Config, __doc__)
    folder = Path(cfg.out)
    if folder.is_file():
        raise UsageError(f"--out {folder}: a file is in the way; expected a folder")
    if folder.exists() and not cfg.resume:
        raise UsageError(f"--out {folder} exists; expected a new folder, or --resume to go on with it")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists() and (others := config.differences(cfg, path, ignore=["resume", "out"])):
        raise UsageError(f"--resume {folder}: {'; '.join(others)}; give the run's own options")
    clock = folder / "seconds.json"
    with open_sandbox(cfg) as sandbox:
        config.write(cfg, path, {"sandbox": {"level": sandbox.level, "layers": sandbox.layers}})
        if not (folder / "sft.jsonl").exists():
            print(f"data: {ABOUT['data']}")
            began = time.perf_counter()
            write_data(cfg, folder, sandbox)
            clock.write_text(json.dumps({"data": time.perf_counter() - began}))
    with World() as world:
        seconds = run_stages(cfg, folder, world)
    began = time.perf_counter()
    asked = evaluation_questions()
    print(f"\nevaluation: {ABOUT['evaluation']}; {check_disjoint(cfg, folder, asked)}")
    rows, episodes = {}, {}
    with open_sandbox(cfg, quiet=True) as sandbox:
        for stage, protocol in (("base_text", "text"), ("base", "r1ci"), ("sft", "r1ci"), ("grpo", "r1ci")):
            model = folder / stage.removesuffix("_text") / "final"
            rows[stage], episodes[stage], tokenizer = measure(model, protocol, asked, cfg.seed, sandbox)
    seconds["evaluation"] = time.perf_counter() - began
    count = sum(map(len, asked.values()))
    summary = {"seed": cfg.seed, "questions": count, "seconds": seconds, "stages": rows}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(changed(episodes["sft"], episodes["grpo"]), tokenizer)
    print("\n" + table(rows))
    total = sum(seconds.values())
    print("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()) + f"; {total:.0f} in all")
    picture = plot.draw([folder / "grpo"], folder / "demo.png")
    print(f"picture: {picture}; numbers: {folder / 'summary.json'}")


if __name__ == "__main__":
    config.run(main)
