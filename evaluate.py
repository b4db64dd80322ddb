"""How often a model is right, how it used the interpreter, and whether two models differ.

    python evaluate.py --model runs/demo/grpo/final --suite toy --split test --questions 370 --out grpo.json
    python evaluate.py --model DIR --tasks symbench,bbh,reasoning_gym --split test --questions 3700
    python evaluate.py --model DIR --tasks aime.jsonl --protocol retool      # 32 answers per question
    python evaluate.py --url http://localhost:8000/v1 --model NAME --protocol r1ci    # a model behind HTTP
    python evaluate.py compare sft.json grpo.json

Questions have indices below 10,000, which no training stage draws from. Temperature, top-p and answers per
question are those of the protocol's paper unless given. Each question is answered k = --samples times:

    avg@k     the mean over all answers, with its standard error over questions: answers to one question
              depend on each other, so they count as one cluster
    pass@k    the chance that one of k answers is right

A family's row and "mean of tasks" weigh every task alike, as the papers do (macro), with the error that these
tasks would have with other questions. "all questions" weighs every question alike (micro), with the error of
drawing other questions of other tasks as well, which is larger where tasks are unlike.

`compare` takes files written by --out for the same questions, and tests each run against the first with the
exact paired permutation test over questions (`permutation_test`; with one answer each it is McNemar's).

With --url the model is one behind an OpenAI-compatible address; its programs run in our sandbox. The key is
read from the environment, ABACUS_API_KEY. Its tokens are those that the server counts, empty where it does
not; what only the tokens themselves could tell is empty as well.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from analysis import behaviour
from analysis.compare import _measured, compare, macro
from episode import Episode
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from rollout import Limits, PromptEncoder, Request, blame_sandbox, grade_text, open_sandbox, rollout
from sample import Sampler
from sandbox import RemoteSandbox, Sandbox
from tasks import PROTOCOLS, Problem, get, get_protocol, names, select, use_bbh
from tokenizer import Tokenizer
from training.evaluation import _ks, questions, summary
from training.loading import load_model
from trajectories.endpoint import Endpoint, converse

R1CI = {"temperature": 0.6, "top_p": 1.0, "samples": 1}  # the paper states the first alone


RETOOL = {"temperature": 1.0, "top_p": 0.7, "samples": 32}


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder; with --url the server's name of the model")
    url: str | None = option(
        None,
        "OpenAI-compatible address, before /chat/completions; environment: ABACUS_API_KEY, https_proxy",
    )
    suite: str | None = option(None, "one suite: all its tasks, or those of --tasks; toy without either")
    tasks: str | None = option(None, "task or suite names, comma separated")
    split: str | None = option(None, "of a suite: train, test, or both without it")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")
    questions: int = option(200, "in all, spread evenly over the tasks; no two alike", least=1)
    samples: int | None = option(None, "answers per question; by default retool 32, else 1", least=1)
    temperature: float | None = option(None, "0 is greedy; by default retool 1.0, else 0.6", least=0)
    top_p: float | None = option(None, "nucleus; by default retool 0.7, else 1", above=0, most=1)
    max_prompt: int | None = option(None, "tokens; without it as many as the longest prompt has", least=1)
    max_tokens: int = option(512, "tokens of an episode after its prompt (ReTool: 16384 in all)", least=1)
    max_calls: int = option(8, "programs per episode (R1-Code-Interpreter: 8)", least=0)
    timeout: float = option(5.0, "seconds per program (R1-Code-Interpreter: 60)", above=0)
    slots: int = option(128, "episodes decoded at once; with --url, asked at once", least=1)
    seed: int = option(0, "sampling", least=0)
    out: str | None = option(None, "JSON file for the tables and every answer, which `compare` reads")
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    sandbox_url: str | None = option(None, "SandboxFusion server that runs the programs instead")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")

    def __post_init__(self) -> None:
        """Sampling options that are not given are those of the protocol's paper."""
        for name, value in (RETOOL if self.protocol == "retool" else R1CI).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


# -- asking ----------------------------------------------------------------------------------------


def chosen_tasks(cfg: Config) -> list[str]:
    """The tasks that --suite and --tasks name: those of the suite where both are given. Raises UsageError."""
    if cfg.suite:
        names(cfg.suite)  # is it a suite?
    tasks = list(dict.fromkeys(select(cfg.tasks or cfg.suite or "toy", cfg.split)))
    for name in tasks:
        if cfg.suite not in (None, found := get(name).suite):
            raise UsageError(f"--tasks {name} is of suite {found}; expected tasks of --suite {cfg.suite}")
    return tasks


def answer(
    model: Qwen, tokenizer: Tokenizer, asked: Sequence[Problem], cfg: Config, sandbox: Sandbox | None
) -> list[Episode]:
    """`samples` graded episodes per problem, in order; a progress bar on stderr. A checker that crashes
    raises, with the question and the answer: it is a bug in a task, not a wrong answer."""
    protocol, system = get_protocol(cfg.protocol), config.read_text(cfg.system_file, "--system-file")
    wanted = [
        Request(problem, place, key=(cfg.seed, 0, place, sample))
        for place, problem in enumerate(asked)
        for sample in range(cfg.samples)
    ]
    encode = PromptEncoder(tokenizer, protocol, system)
    longest = cfg.max_prompt or max(len(encode(problem.question)) for problem in asked)
    slots = min(cfg.slots, len(wanted))
    sampler = Sampler(model, slots, longest + cfg.max_tokens, temperature=cfg.temperature, top_p=cfg.top_p)
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    pause = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(wanted), desc="evaluate", leave=False, mininterval=pause) as bar:
        return rollout(
            sampler,
            tokenizer,
            wanted,
            protocol,
            sandbox,
            limits,
            on_finish=lambda _: bar.update(),
            system=system,
        )


def check_url(cfg: Config) -> None:
    """Raises UsageError for options that say nothing to a model behind HTTP, and where it has no name."""
    if cfg.model == "tiny":
        raise UsageError(f"--url {cfg.url}: expected --model NAME as well, the server's name of its model")
    for name in ("device", "dtype", "max_prompt", "seed"):
        if (value := getattr(cfg, name)) != getattr(Config, name):
            raise UsageError(f"--{name.replace('_', '-')} {value}: has no effect with --url; leave it out")


def answer_by_url(
    asked: Sequence[Problem], cfg: Config, sandbox: Sandbox | RemoteSandbox | None
) -> list[Episode]:
    """answer(), by a model behind HTTP; its episodes have no tokens, at best their number. Raises UsageError
    at the first question without an answer, since a table that lacks questions is another table."""
    protocol, system = get_protocol(cfg.protocol), config.read_text(cfg.system_file, "--system-file")
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    options = {"temperature": cfg.temperature, "top_p": cfg.top_p, "system": system}
    wanted = [(place, problem) for place, problem in enumerate(asked) for _ in range(cfg.samples)]
    episodes = [Episode(problem, place) for place, problem in wanted]
    pause = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=len(wanted), desc="evaluate", leave=False, mininterval=pause)
    with bar, Endpoint(cfg.url, cfg.model, workers=min(cfg.slots, len(wanted))) as endpoint:
        running = {
            endpoint.submit(converse, endpoint, e.problem.question, protocol, sandbox, limits, **options): e
            for e in episodes
        }
        for future in as_completed(running):
            episode, exchange = running[future], future.result()
            if exchange.failed:
                blame_sandbox(episode.problem, exchange.failed, forgive=False)
            episode.calls, episode.written = exchange.calls, exchange.completion_tokens
            grade_text(episode, exchange.finish, exchange.text, protocol)
            bar.update()
    print(endpoint.cost())
    return episodes


def results(episodes: Sequence[Episode], cfg: Config) -> dict:
    """All that is known of an evaluation, as JSON: a row per task and family, two overall, each question."""
    by_task: dict[str, list[Episode]] = {}
    for e in episodes:
        by_task.setdefault(e.problem.task, []).append(e)
    tasks = {name: summary(found, cfg.samples) for name, found in sorted(by_task.items())}
    families: dict[str, list[dict]] = {}
    for name, row in tasks.items():
        families.setdefault(get(name).suite, []).append(row)
    asked = [episodes[i : i + cfg.samples] for i in range(0, len(episodes), cfg.samples)]
    return {
        "config": config.to_json(cfg),
        "tasks": tasks,
        "families": {name: macro(rows) for name, rows in families.items()},
        "overall": {"macro": macro(list(tasks.values())), "micro": summary(episodes, cfg.samples)},
        "questions": [_question(found) for found in asked],
    }


def _question(episodes: Sequence[Episode]) -> dict:
    """One question's line in the results; its digest tells whether another run asked the same."""
    problem = episodes[0].problem
    return {
        "task": problem.task,
        "index": problem.index,
        "family": get(problem.task).suite,
        "digest": hashlib.sha256(problem.question.encode()).hexdigest()[:16],
        "correct": [bool(e.correct) for e in episodes],
        "answers": [e.answer for e in episodes],
    }


def table(found: dict) -> str:
    """The results for people: a row per task, per family where there are several, and overall."""
    rows = dict(found["tasks"])
    families, overall = found["families"], found["overall"]
    samples = overall["micro"]["episodes"] // overall["micro"]["questions"]
    if len(families) > 1:
        rows |= {f"{name}, mean of {row['tasks']} tasks": row for name, row in families.items()}
    if len(found["tasks"]) > 1:
        rows[f"mean of {len(found['tasks'])} tasks"] = overall["macro"]
        rows["all questions"] = overall["micro"]
    width = max(map(len, rows))
    ks = _ks(samples)
    head = f"{'':{width}} questions  {f'avg@{samples}':<15}" + "".join(f"{f'pass@{k}':<9}" for k in ks)
    lines = [head + "  code  calls failed  tokens"]
    for name, r in rows.items():
        line = f"{name:{width}} {r['questions']:9}  {_measured(r['accuracy'], r['stderr']):<15}"
        line += "".join(f"{r[f'pass@{k}']:<9.3f}" for k in ks)
        if "calls" in r:
            line += f"  {r['code_ratio']:4.2f} {r['calls']:6.2f} {r['calls_failed']:6.2f} "
            line += "" if r["response_tokens"] is None else f"{r['response_tokens']:7.1f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


# -- the command -----------------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        print(compare(sys.argv[2:]))
        return
    cfg = config.parse(Config, __doc__)
    config.new_file(cfg.out, "--out")
    get_protocol(cfg.protocol)
    if cfg.temperature == 0 and cfg.samples > 1:
        raise UsageError(
            f"--temperature 0: all {cfg.samples} answers would be the same; give --samples 1 as well"
        )
    use_bbh(cfg.bbh)
    tasks = chosen_tasks(cfg)
    asked = questions(tasks, cfg.questions)
    if cfg.url:
        check_url(cfg)
        ask = answer_by_url
    else:
        ask = partial(answer, *load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed))
    print(
        f"{cfg.model}, {cfg.protocol}, temperature {cfg.temperature:g}, top-p {cfg.top_p:g}: {len(asked)} "
        f"questions of {len({p.task for p in asked})} tasks, answered {cfg.samples} times each"
    )
    if len(asked) < cfg.questions:
        print(f"--questions {cfg.questions}: these tasks have no more than {len(asked)} different ones")
    if len(asked) < len(tasks):
        print(
            f"--questions {cfg.questions}: {len(tasks) - len(asked)} of the {len(tasks)} tasks are not asked"
        )
    with open_sandbox(cfg.sandbox, cfg.timeout, cfg.preload, url=cfg.sandbox_url) as sandbox:
        episodes, level = ask(asked, cfg, sandbox), sandbox.level
    found = results(episodes, cfg) | {"sandbox": level}
    if cfg.out:
        Path(cfg.out).write_text(json.dumps(found, indent=2) + "\n")
    print("\n" + table(found) + "\n\n" + behaviour.table({"": found["overall"]["micro"]}))


if __name__ == "__main__":
    config.run(main)
