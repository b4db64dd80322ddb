"""Where supervised trajectories come from. Four sources write the same file, which sft.py reads:

    python coldstart.py --source programs --tasks symbench,bbh --per-task 70 --out FILE
    python coldstart.py --source model --model DIR --tasks symbench --out FILE
    python coldstart.py --source endpoint --url http://localhost:8000/v1 --model NAME --tasks bbh --out FILE
    python coldstart.py --source rewrite --data solutions.jsonl --model DIR --out FILE     # or --url and NAME
    python coldstart.py check FILE

    programs   the tasks' reference programs, really executed, in the shapes of drafts.py
    model      our own sampler on a checkpoint, in four styles of asking; right answers are kept
    endpoint   a teacher behind an OpenAI-compatible address writes, our sandbox runs its programs
    rewrite    ReTool's (2504.11536): a teacher rewrites text solutions with programs and their results in
               them; kept if every marker is matched, every program parses, every result is what the sandbox
               gives, and the answer is the same

Whatever the source, a trajectory is kept only if its answer is right, its stored results come out again, and
its question is not asked in evaluation; at most --per-task of each task (rewrite: all), those with several
programs first up to the share --multi-turn (R1-Code-Interpreter, 2505.21668: 6.5k trajectories, at most 70
per task, multi-turn favoured). traces.py has every reason for which one is left out; a table of them ends
the run.

endpoint and rewrite can be stopped and killed: FILE.part has every outcome as soon as it is known, and the
same command goes on from there. The key is read from the environment, ABACUS_API_KEY.
"""

import dataclasses
import functools
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from episode import Episode
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from rollout import Limits, PromptEncoder, Request, open_sandbox, rollout
from sample import Sampler
from sandbox import Sandbox
from tasks import PROTOCOLS, for_training, get_protocol, output, use_bbh
from tokenizer import Source, Tokenizer
from training.loading import load_model
from trajectories import checks
from trajectories.endpoint import Endpoint
from trajectories.format import REASONS, Fault, trajectory, write
from trajectories.ledger import Ledger
from trajectories.programs import WORDS, carry_out, draft, with_programs
from trajectories.questions import digest, evaluated, open_questions, to_ask
from trajectories.teachers import (
    Journal,
    answered,
    gather,
    local_teacher,
    progress,
    read_solutions,
    remote_teacher,
    rewrite,
)

PER_TASK = 70  # R1-Code-Interpreter's


SOURCES = ("programs", "model", "endpoint", "rewrite")


ALTERNATING = (
    "Solve the question by turns: some reasoning in words, then a Python program for one step of it, in a "
    "block that begins with {} and ends with {}; it is run for you and its output comes back. Reason about "
    "the output, write the next program, and so on, at least two programs in all. {}"
)


STYLES = ("free", "text", "code", "alternating")  # how a question is put; see style()


@dataclass(frozen=True)
class Config:
    source: str = option("programs", "where they come from: " + ", ".join(SOURCES))
    tasks: str = option("toy", "task or suite names, comma separated; of a suite, its training tasks")
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    per_task: int | None = option(
        None,
        f"most trajectories of a task; without it {PER_TASK} (R1-Code-Interpreter), rewrite: all",
        least=1,
    )
    multi_turn: float = option(0.6, "share with two or more programs that is aimed at", least=0, most=1)
    evaluation: int = option(
        1000, "of each task's 10,000 evaluation questions, the first that no question may repeat", least=0
    )
    seed: int = option(0, "shapes, phrasings, slips, sampling", least=0)
    out: str = option("trajectories.jsonl", "file to write; a new one")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    timeout: float = option(5.0, "seconds per program", above=0)
    model: str | None = option(None, "checkpoint folder; with --url the server's name of the model")
    url: str | None = option(
        None,
        "OpenAI-compatible address, before /chat/completions; environment: ABACUS_API_KEY, https_proxy",
    )
    data: str | None = option(
        None, "for rewrite: JSON lines with a solution and question and answer, or task and index"
    )
    styles: str = option("free,text,code,alternating", "for model and endpoint: how it is asked, in turn")
    samples: int = option(1, "for model and endpoint: answers per question and style", least=1)
    temperature: float = option(1.0, "for model, endpoint, rewrite", least=0)
    max_tokens: int = option(1024, "tokens of an answer, results included", least=1)
    max_calls: int = option(8, "programs per answer (R1-Code-Interpreter: 8)", least=0)
    slots: int = option(64, "answers sampled at once; with --url, asked at once", least=1)
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


def program_source(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """Up to --per-task trajectories of each task, from its reference programs. What is dropped is made up for
    by further questions, in at most four rounds."""
    questions = open_questions(tasks, cfg)
    for round in range(4):
        drafts = []
        for task, stream in questions.items():
            lacking = cfg.per_task - len(ledger.kept[task])
            rng = random.Random(f"coldstart {cfg.seed} {task} {round}")
            for problem in stream.take(lacking, 4 * lacking) if lacking else ():
                made = draft(problem, cfg.multi_turn, rng, cfg.protocol)
                drafts += [made] if made else []
        for made, record, fault in progress(carry_out(drafts, sandbox), len(drafts), f"round {round + 1}"):
            ledger.add(made.problem.task, record or fault)
    for task, stream in questions.items():
        for fault in stream.faults:
            ledger.add(task, fault)


# -- a model of ours -----------------------------------------------------------------------------------


def style(name: str, protocol: str) -> tuple[str, str | None]:
    """(protocol, head prompt or None for its own) of a style of asking. Raises UsageError."""
    if name not in STYLES:
        raise UsageError(f"--styles {name}{config.nearest(name, STYLES)}; known are {', '.join(STYLES)}")
    if name in ("text", "code"):
        return name, None
    if name == "free":
        return protocol, None
    shape = get_protocol(protocol)
    fence = ("<code>\n```python", "```\n</code>") if shape.open == "<code>" else ("```python", "```")
    return protocol, ALTERNATING.format(*fence, f"Finish with {shape.answer.format('answer')}.")


def model_source(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """Rejection sampling: --per-task questions of each task, each answered --samples times in every style."""
    asked = to_ask(tasks, cfg)
    model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype)
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    for number, name in enumerate(cfg.styles.split(",")):
        protocol, system = style(name.strip(), cfg.protocol)
        shape = get_protocol(protocol)
        encode = PromptEncoder(tokenizer, shape, system)
        longest = max(len(encode(p.question)) for p in asked)
        wanted = [
            Request(p, place, key=(cfg.seed, number, place, sample))
            for place, p in enumerate(asked)
            for sample in range(cfg.samples)
        ]
        slots = min(cfg.slots, len(wanted))
        sampler = Sampler(model, slots, longest + cfg.max_tokens, temperature=cfg.temperature)
        with tqdm(total=len(wanted), desc=name, leave=False, delay=2) as bar:
            episodes = rollout(
                sampler,
                tokenizer,
                wanted,
                shape,
                sandbox,
                limits,
                forgive=True,
                on_finish=lambda _, bar=bar: bar.update(),
                system=system,
            )
        keep_right(
            [from_episode(e, tokenizer, protocol, system) for e in episodes], episodes, sandbox, ledger
        )


def from_episode(
    episode: Episode, tokenizer: Tokenizer, protocol: str, system: str | None = None
) -> dict | Fault:
    """A sampled episode as a trajectory: its turns by who wrote each token, the results as the sandbox gave
    them."""
    if episode.finish != "stop":
        return Fault(
            {"length": "unanswered", "calls": "limit"}.get(episode.finish, "sandbox"), episode.finish
        )
    spans: list[tuple[int, list[int]]] = []
    for token, source in zip(episode.tokens, episode.source, strict=True):
        if not spans or spans[-1][0] != source:
            spans.append((source, []))
        spans[-1][1].append(token)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": episode.problem.question})
    calls = iter(episode.calls)
    for source, ids in spans[1:]:
        if source == Source.TOOL:
            call = next(calls, None)
            if call is None:
                return Fault("limit")
            messages.append({"role": "tool", "content": output(call.result)})
        elif source == Source.POLICY:
            ids = [token for token in ids if token not in tokenizer.stop_ids]
            messages.append({"role": "assistant", "content": tokenizer.decode(ids)})
        else:
            asked = PROTOCOLS[protocol].follow_up[any(m["role"] == "tool" for m in messages)]
            messages.append({"role": "user", "content": asked})
    return trajectory(episode.problem, messages, "model", protocol)


def keep_right(
    found: Sequence[dict | Fault], about: Sequence[Episode], sandbox: Sandbox, ledger: Ledger
) -> None:
    """Enter what was sampled: the faults, and of the trajectories those that hold when all runs anew."""
    whole = [(f, e.problem) for f, e in zip(found, about, strict=True) if not isinstance(f, Fault)]
    faults = checks.verify([f for f, _ in whole], [p for _, p in whole], sandbox, sandbox.timeout)
    for (record, problem), fault in zip(whole, faults, strict=True):
        ledger.add(problem.task, fault or record)
    for outcome, episode in zip(found, about, strict=True):
        if isinstance(outcome, Fault):
            ledger.add(episode.problem.task, outcome)


# -- a teacher -----------------------------------------------------------------------------------------


def ask(
    endpoint: Endpoint,
    jobs: dict[str, object],
    work: Callable[[list], list[dict | Fault]],
    journal: Journal,
    slots: int,
) -> None:
    """Do the jobs with a model behind HTTP, `slots` at once; however it ends, say what it has cost."""
    try:
        gather(jobs, work, journal, threads=slots, stop=endpoint.close)
    finally:
        print(endpoint.cost())


def endpoint_source(cfg: Config, tasks: Sequence[str], sandbox: Sandbox, ledger: Ledger) -> None:
    """--per-task questions of each task, each answered --samples times in every style by a model behind HTTP,
    with our interpreter. The style "code" opens the answer itself, which cannot be done there."""
    styles = [name.strip() for name in cfg.styles.split(",") if name.strip() != "code"]
    shapes = {name: style(name, cfg.protocol) for name in styles}
    asked = to_ask(tasks, cfg)
    jobs = {
        f"{p.task} {p.index} {name} {sample}": (p, *shapes[name])
        for sample in range(cfg.samples)
        for name in styles
        for p in asked
    }
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    journal = Journal(cfg.out, about(cfg))
    with Endpoint(cfg.url, cfg.model, workers=cfg.slots) as endpoint:

        def work(batch: list) -> list[dict | Fault]:
            return [
                answered(endpoint, problem, protocol, sandbox, limits, cfg.temperature, system)
                for problem, protocol, system in batch
            ]

        ask(endpoint, jobs, work, journal, cfg.slots)
    for key, (problem, *_) in jobs.items():
        ledger.add(problem.task, journal.outcomes[key])


def rewrite_source(cfg: Config, sandbox: Sandbox, ledger: Ledger) -> None:
    """The text solutions of --data, rewritten by a folder's model or by one behind HTTP."""
    solutions = read_solutions(cfg.data, cfg.train_on_test_tasks)
    taboo = {task: evaluated(task, cfg.evaluation, cfg.bbh) for task in {p.task for p, _ in solutions}}
    jobs = {}
    for number, (problem, solution) in enumerate(solutions):
        if digest(problem.question) in taboo[problem.task]:
            ledger.add(problem.task, Fault("evaluation"))
            continue
        text = digest(repr((problem.question, problem.answer, solution))).hex()  # the file may be edited
        jobs[f"{number} {problem.task} {problem.index} {text}"] = problem, solution
    if not jobs:
        raise UsageError(f"--data {cfg.data}: {len(solutions)} questions, none that evaluation does not ask")
    journal = Journal(cfg.out, about(cfg))
    if cfg.url:
        with Endpoint(cfg.url, cfg.model, workers=cfg.slots) as endpoint:
            writer = remote_teacher(endpoint, cfg.max_tokens, cfg.temperature)
            work = functools.partial(rewrite, writer, protocol=cfg.protocol, sandbox=sandbox)
            ask(endpoint, jobs, work, journal, cfg.slots)
    else:
        model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype)
        writer = local_teacher(model, tokenizer, cfg.max_tokens, cfg.temperature, cfg.seed, cfg.slots)
        work = functools.partial(rewrite, writer, protocol=cfg.protocol, sandbox=sandbox)
        gather(jobs, work, journal, size=cfg.slots)
    for key, (problem, _) in jobs.items():
        ledger.add(problem.task, journal.outcomes[key])


def about(cfg: Config) -> dict:
    """The options that decide what is asked: another run's answers are no answers to this one's questions."""
    loose = ("out", "sandbox", "device", "slots", "multi_turn")
    return {name: value for name, value in config.to_json(cfg).items() if name not in loose}


def make(cfg: Config) -> None:
    """Trajectories from --source into --out, and the report."""
    if cfg.source not in SOURCES:
        known = ", ".join(SOURCES)
        raise UsageError(f"--source {cfg.source}{config.nearest(cfg.source, SOURCES)}; known are {known}")
    if cfg.per_task is None and cfg.source != "rewrite":
        cfg = dataclasses.replace(cfg, per_task=PER_TASK)
    get_protocol(cfg.protocol)
    config.new_file(cfg.out, "--out")
    use_bbh(cfg.bbh)
    needed = {"model": ("model",), "endpoint": ("url", "model"), "rewrite": ("data", "model")}
    for name in needed.get(cfg.source, ()):
        if getattr(cfg, name) is None:
            raise UsageError(f"--source {cfg.source} needs --{name}")
    tasks = list(dict.fromkeys(for_training(cfg.tasks, cfg.train_on_test_tasks)))
    ledger = Ledger()
    with open_sandbox(cfg.sandbox, cfg.timeout) as sandbox:
        if cfg.source == "programs":
            program_source(cfg, with_programs(tasks, cfg.protocol, WORDS), sandbox, ledger)
        elif cfg.source == "model":
            model_source(cfg, tasks, sandbox, ledger)
        elif cfg.source == "endpoint":
            endpoint_source(cfg, tasks, sandbox, ledger)
        else:
            rewrite_source(cfg, sandbox, ledger)
    ledger.choose(cfg.per_task, cfg.multi_turn)
    print("\n".join(ledger.report()))
    records = [record for found in ledger.kept.values() for record in found]
    if not records:
        raise UsageError("no trajectory was kept; the table above says why")
    random.Random(f"order {cfg.seed}").shuffle(records)
    count = write(records, cfg.out)
    Path(f"{cfg.out}.part").unlink(missing_ok=True)
    several = sum(r["turns"] > 2 for r in records) / count
    print(f"{count} trajectories -> {cfg.out}; {several:.0%} with two or more programs")


@dataclass(frozen=True)
class CheckConfig:
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    timeout: float = option(5.0, "seconds per program, as when the file was made", above=0)


def check(path: str, cfg: CheckConfig) -> int:
    """Run every program of a file again and print each trajectory that has a fault; how many have."""
    use_bbh(cfg.bbh)
    faults: Counter = Counter()
    count = 0
    with open_sandbox(cfg.sandbox, cfg.timeout) as sandbox:
        for number, fault, record in checks.check(path, sandbox, cfg.timeout):
            count = number
            if fault:
                faults[fault.reason] += 1
                print(f"{path}, line {number}: {record.get('task')} {record.get('index')}: {fault}")
    why = "; ".join(f"{reason} {n} ({REASONS[reason]})" for reason, n in faults.most_common())
    print(f"{count} trajectories, {faults.total()} with a fault{': ' if why else ''}{why}")
    return faults.total()


def main() -> None:
    if sys.argv[1:2] == ["check"]:
        if len(sys.argv) < 3 or sys.argv[2].startswith("-"):
            raise UsageError("expected: coldstart.py check FILE")
        if check(sys.argv[2], config.parse(CheckConfig, __doc__, sys.argv[3:])):
            sys.exit(1)
    else:
        make(config.parse(Config, __doc__))


if __name__ == "__main__":
    config.run(main)
