"""Every comparison of both papers in miniature: trains, asks, and writes docs/results.md.

    python -m analysis.reproduce                         all rows, seeds 0, 1 and 2
    python -m analysis.reproduce masking kl --seeds 0    two rows, one seed

comparisons.py says what is compared. One seed of all rows takes less than two hours on two idle cores. A
finished variant is a line of --results, from which the page beside it is written at the end. What stands
there is not trained again: the same command goes on after a stop, and seeds may be run on different days.

Stages lie in --out, each in a folder named by the digest of its options. Rows share them. A line is of use as
long as its digest is that of the present comparison; others are left alone, and counted on the page.
"""

import dataclasses
import itertools
import math
import random
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import demo
import grpo
import ppo
import sft
from analysis import behaviour, findings, transcripts
from analysis.comparisons import ROWS, Row, Sizes, Stage, Variant, all_rows
from episode import Call, Episode, spans
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, Problem, Turn, get_protocol, names, toy
from tokenizer import Source, Tokenizer
from training import curriculum
from training.interpreter import open_sandbox
from training.options import SandboxOptions
from trajectories import habits
from trajectories.programs import Draft, execute, from_programs
from trajectories.records import write

SCRIPTS = {"base": sft, "sft": sft, "grpo": grpo, "ppo": ppo, "curriculum": curriculum}
PARTS = 8  # of a run, in its curve
LOGGED = ("step", "reward", "accuracy", "entropy", "code_ratio", "calls", "calls_ran", "response_tokens")
FROM_EPISODES = ("code_lines", "first_call", "repaired", "self_checked", "last_pass_right", "last_pass_wrong")
# Seconds on two idle cores: of a step, of a stage, of asking a variant. Only for the first guess at the rest.
STEP = {"base": 0.2, "grpo": 2.5, "ppo": 4.0}
WHOLE = {"base": 30.0, "sft": 8.0, "curriculum": 20.0, "asked": 15.0}


@dataclass(frozen=True)
class Config(SandboxOptions):
    """The comparisons."""

    seeds: str = option("0,1,2", "seeds, comma separated; each trains and asks everything once")
    out: str = option("runs/reproduce", "folder of all stages; about 1 GB for three seeds")
    results: str = option("docs/results.jsonl", "a line per finished variant; FILE.md is the page")
    preload: str = option("", "modules imported before any program runs; these programs need none")


# -- data ------------------------------------------------------------------------------------------


def in_protocol(draft: Draft, protocol: str) -> Draft:
    """A draft of the demo's mixture, which is in r1ci, in another protocol."""

    def conclude(outputs: list[str]) -> str:
        text, answer = draft.conclude(outputs).removesuffix(">>>").split("<<<", 1)
        return text + PROTOCOLS[protocol].answer.format(answer)

    return dataclasses.replace(draft, protocol=protocol, conclude=conclude)


def mixture(options: dict, seed: int) -> Iterator[Draft]:
    """The trajectories of a base model: the demo's mixture, with each way of answering equally often. All
    code means that every answer has a program."""
    rng = random.Random(f"ways {seed}")
    for draft in habits.mixture(options["examples"], seed):
        ways = [way for way in options["ways"] if draft.programs or way != "code"]
        yield draft if draft.protocol == "text" else in_protocol(draft, rng.choice(ways))


def spoilt(draft: Draft, rng: random.Random) -> Draft:
    """The draft with a silent mistake in its last program."""
    *before, (words, program) = draft.programs
    return dataclasses.replace(draft, programs=[*before, (words, toy.with_bug(program, rng))])


def trajectories(options: dict, seed: int, sandbox: Sandbox) -> Iterator[dict]:
    """What SFT learns from: `count` drafts of training tasks, a share `wrong` of them spoilt, and facts."""
    count, protocol = options["count"], options["protocol"]
    tasks = names("toy", "train")
    drafts = from_programs(tasks, protocol, math.ceil(count / len(tasks)), options["repair"], seed)[:count]
    facts = from_programs(names("facts"), protocol, demo.FACTS, 0.0, seed)
    wrong, rng = round(options["wrong"] * count), random.Random(f"wrong {seed}")
    yield from execute(drafts[wrong:] + facts, sandbox)
    yield from execute([spoilt(draft, rng) for draft in drafts[:wrong]], sandbox, only_right=False)


# -- stages ----------------------------------------------------------------------------------------


class Workshop:
    """Trains stages, each once, in the folders of one seed."""

    def __init__(self, cfg: Config, seed: int, sizes: Sizes):
        self.cfg, self.seed, self.sizes = cfg, seed, sizes
        self.folder = Path(cfg.out) / f"seed-{seed}"
        self.known = demo.stages(demo.Config(seed=seed, sandbox=cfg.sandbox), self.folder)

    def place(self, stage: Stage) -> Path:
        """The folder of a stage."""
        return self.folder / f"{stage.kind}-{stage.digest}"

    def product(self, stage: Stage) -> Path:
        """What a stage leaves: a model's folder, or the file of a curriculum."""
        return self.place(stage) / ("curriculum.jsonl" if stage.kind == "curriculum" else "final")

    def make(self, stage: Stage) -> Path:
        """The product of a stage, made now or before, after the stages that it begins with."""
        product = self.product(stage)
        if product.exists():
            return product
        for before in (stage.start, stage.course):
            if before:
                self.make(before)
        if stage.kind == "curriculum":
            curriculum.measure(self.options(stage), World())
            return product
        with World() as world:
            SCRIPTS[stage.kind].train(self.options(stage), world)
            if world.stopping:
                print("stopped; the same command goes on")
                sys.exit(0)
        # the weights are in final/
        shutil.rmtree(self.place(stage) / "checkpoints")
        return product

    def options(self, stage: Stage):
        """The options of the script that makes a stage: the demo's, with the stage's own in their place."""
        script = SCRIPTS[stage.kind]
        known = self.known[stage.kind if stage.kind in self.known else "grpo"][1]
        found = config.to_json(known) | stage.options | {"out": str(self.place(stage))}
        if stage.start:
            found["model"] = str(self.product(stage.start))
        if stage.course:
            found["curriculum"] = str(self.product(stage.course))
        if script is sft:
            # the trajectories of repairs are made here
            found |= {"data": str(self.data(stage)), "repair": known.repair}
        elif script is curriculum:
            found["out"] = str(self.product(stage))
        else:
            found["eval_questions"] = min(128, self.sizes.questions)
            found |= {"log_every": 1, "save_every": 10, "keep": 1}
        own = {f.name for f in dataclasses.fields(script.Config)}
        return script.Config(**{name: x for name, x in found.items() if name in own})

    def data(self, stage: Stage) -> Path:
        """The trajectories of a stage, made now or before."""
        path = self.folder / f"{stage.kind}-{stage.digest}.jsonl"
        if not path.exists():
            with open_sandbox(self.cfg, quiet=True) as sandbox:
                if stage.kind == "base":
                    found = execute(list(mixture(stage.options, self.seed)), sandbox, only_right=False)
                else:
                    found = trajectories(stage.options, self.seed, sandbox)
                write(found, path)
        return path

    def left(self, stage: Stage | None, planned: set[Path]) -> float:
        """Estimated seconds to make a stage, without what is made or `planned`; the stage is planned then."""
        if stage is None or self.product(stage) in planned or self.product(stage).exists():
            return 0.0
        planned.add(self.product(stage))
        own = WHOLE.get(stage.kind, 0.0) + STEP.get(stage.kind, 0.0) * stage.options.get("steps", 0)
        return own + self.left(stage.start, planned) + self.left(stage.course, planned)


# -- what is measured ------------------------------------------------------------------------------


def ask(variant: Variant, model: Path, shop: Workshop) -> dict:
    """Accuracy of a variant on the demo's evaluation sets, sampled and greedy, and how it answers."""
    tokens = variant.longer * shop.sizes.tokens
    options = {"protocol": variant.protocol, "seed": shop.seed, "max_tokens": tokens}
    with open_sandbox(shop.cfg, quiet=True) as sandbox:
        asked = demo.evaluation_questions(shop.sizes.questions)
        row, episodes, _ = demo.measure(model, options, asked, sandbox)
    found = {name.removesuffix("_tasks"): numbers for name, numbers in row.items()}
    return found | {"behaviour": {k: v for k, v in behaviour.measure(episodes).items() if k != "purposes"}}


def logged(record: dict, tokenizer: Tokenizer, protocol: str) -> Episode:
    """The episode of a line of episodes.jsonl, with its programs, and what they printed as far as the model
    read it."""
    tokens, source = record["tokens"], record["source"]
    problem = Problem(record["task"], record["index"], "", None)
    episode = Episode(problem, 0, tokens, source, [0.0] * len(tokens))
    episode.answer, episode.correct, episode.finish = record["answer"], record["correct"], record["finish"]
    shape, statuses, place, turn = get_protocol(protocol), iter(record["calls"]), 0, None
    for kind, ids in spans(tokens, source):
        if kind == Source.POLICY:
            turn = Turn(shape, place)
            for token in ids:
                turn.feed(tokenizer.piece(token))
        elif kind == Source.TOOL and turn and turn.program is not None and (status := next(statuses, None)):
            shown = tokenizer.decode(ids).removeprefix(shape.before).removesuffix(shape.after)
            result = Result(status, shown, "", None, None, 0.0, 0.0, 0.0, False)
            episode.calls.append(Call(turn.program, result, turn.block_start))
        place += len(ids)
    return episode


def parts(values: Sequence, count: int = PARTS) -> list[Sequence]:
    """Cut into at most `count` parts of about the same size, none empty."""
    count = min(count, len(values))
    bounds = [round(i * len(values) / count) for i in range(count + 1)]
    return [values[a:b] for a, b in itertools.pairwise(bounds)]


def mean(values: Sequence) -> float | None:
    """The mean of those that are not None, in six digits; None without any."""
    known = [v for v in values if v is not None]
    return float(f"{statistics.fmean(known):.6g}") if known else None


def along(folder: Path, protocol: str) -> dict:
    """What the log of a run says: "curve", means over eighths of its steps, and "training", over its ends."""
    lines = [m for m in transcripts.metrics(folder) if "reward" in m]
    if not lines:
        return {}
    tokenizer = Tokenizer.load(str(folder / "final"))
    episodes: dict[int, list[Episode]] = {}
    for record in transcripts.records(folder / "episodes.jsonl"):
        episodes.setdefault(record["step"], []).append(logged(record, tokenizer, protocol))
    curve: dict[str, list] = {}
    for part in parts(lines):
        found = behaviour.measure([e for m in part for e in episodes.get(m["step"], [])])
        row = {name: mean([m.get(name) for m in part]) for name in LOGGED}
        row |= {name: mean([found[name]]) for name in FROM_EPISODES}
        for name, x in row.items():
            curve.setdefault(name, []).append(x)
    few = min(10, len(lines) // 2 or 1)
    training = {
        "first": mean([m["accuracy"] for m in lines[:few]]),
        "last": mean([m["accuracy"] for m in lines[-few:]]),
        "entropy": mean([m.get("entropy") for m in lines[-few:]]),
        "ratio_max": max(m.get("ratio_max", 1.0) for m in lines),
        "skipped": sum(m.get("skipped", 0) for m in lines),
        "mismatch_max": max(m.get("mismatch_max", 0.0) for m in lines),
        "groups_mixed": mean([m["groups_mixed"] for m in lines]),
        "stage_questions": lines[0].get("stage_questions"),
    }
    return {"curve": curve, "training": training}


# -- the whole -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A variant of a row, to be measured with one seed."""

    row: str
    name: str
    variant: Variant
    shop: Workshop

    @property
    def key(self) -> tuple[str, int]:
        """What is measured, whatever row it belongs to."""
        return findings.digest(self.variant, self.shop.sizes), self.shop.seed


def jobs(rows: dict[str, Row], cfg: Config, seeds: Sequence[int], sizes: Sizes) -> Iterator[Job]:
    """All variants of these rows, seed by seed."""
    for seed in seeds:
        shop = Workshop(cfg, seed, sizes)
        for name, row in rows.items():
            for label, variant in row.variants.items():
                yield Job(name, label, variant, shop)


def remaining(todo: Sequence[Job], known: Collection[tuple[str, int]] = ()) -> float:
    """Estimated seconds of these jobs on two idle cores; a job whose result is `known` takes 0."""
    planned: set[Path] = set()
    new = {job.key: job for job in todo if job.key not in known}
    return sum(WHOLE["asked"] + job.shop.left(job.variant.stage, planned) for job in new.values())


def measure(job: Job) -> dict:
    """The line of a variant: its numbers, and the seconds that they took here."""
    began = time.perf_counter()
    stage = job.variant.stage
    model = job.shop.make(stage)
    found = ask(job.variant, model, job.shop) | along(job.shop.place(stage), job.variant.protocol)
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def run(rows: dict[str, Row], cfg: Config, seeds: Sequence[int], sizes: Sizes) -> None:
    """Measure what --results lacks, line by line. A variant that another row has too is measured once."""
    path = Path(cfg.results)
    lines = findings.read(path)
    known = {(line["digest"], line["seed"]): line for line in lines}
    there = {(line["row"], line["variant"], line["digest"], line["seed"]) for line in lines}
    todo = [job for job in jobs(rows, cfg, seeds, sizes) if (job.row, job.name, *job.key) not in there]
    try:
        measure_all(todo, known, path)
    finally:  # a stop leaves a page of what there is
        print(f"page: {findings.write_page(path, sizes)}")


def measure_all(todo: Sequence[Job], known: dict[tuple[str, int], dict], path: Path) -> None:
    """Append the line of every job; that of a variant that is `known` is copied."""
    spent, expected = 0.0, 0.0
    for number, job in enumerate(todo):
        # the guesses were made for two idle cores; what this session took corrects them
        rest = remaining(todo[number:], known) * (spent / expected if expected else 1.0)
        place = f"[{number + 1}/{len(todo)}] {job.row}: {job.name}, seed {job.shop.seed}"
        print(f"{place}; about {findings.duration(rest)} left", flush=True)
        line = {"row": job.row, "variant": job.name, "seed": job.shop.seed, "digest": job.key[0]}
        if job.key in known:
            line = known[job.key] | line | {"seconds": 0.0}
        else:
            expected += remaining([job])
            line |= measure(job)
            spent += line["seconds"]
            known[job.key] = line
        findings.append(path, line)


def chosen(words: Sequence[str]) -> list[str]:
    """The rows named on the command line, in the order of ROWS; all without any. Raises UsageError."""
    for word in words:
        config.one_of("ROW", word, ROWS)
    return [name for name in ROWS if name in words or not words]


def main() -> None:
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    about = __doc__.replace("\n", "\n" + textwrap.fill(f"Rows: {', '.join(ROWS)}", 100) + "\n", 1)
    cfg = config.parse(Config, about, sys.argv[1 + len(words) :])
    try:
        seeds = [int(seed) for seed in cfg.seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {cfg.seeds}: expected numbers, comma separated") from None
    sizes = Sizes()
    every = all_rows(sizes)
    rows = {name: every[name] for name in chosen(words)}
    for name, row in rows.items():
        if row.left_out:
            print(f"{name}, left out: {row.left_out}")
    run(rows, cfg, seeds, sizes)


if __name__ == "__main__":
    config.run(main, "analysis.reproduce")
