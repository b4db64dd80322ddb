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
import math
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import behaviour
import checkpoint
import config
from config import UsageError, option
from distributed import World
from endpoint import Endpoint, converse
from model import Qwen
from remote import RemoteSandbox
from rollout import Episode, Limits, PromptEncoder, Request, blame_sandbox, grade_text, open_sandbox, rollout
from sample import Sampler
from sandbox import Sandbox
from tasks import PROTOCOLS, SFT_START, Problem, get, get_protocol, names, select, use_bbh
from tokenizer import Tokenizer

R1CI = {"temperature": 0.6, "top_p": 1.0, "samples": 1}  # the paper states the first alone
RETOOL = {"temperature": 1.0, "top_p": 0.7, "samples": 32}


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder; with --url the server's name of the model")
    url: str | None = option(None, "OpenAI-compatible address, before /chat/completions; key: ABACUS_API_KEY")
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


def questions(tasks: Sequence[str], count: int) -> list[Problem]:
    """`count` different evaluation questions, the tasks in turn; all that there are where there are fewer."""
    found: dict[str, Problem] = {}
    sources = [get(name) for name in tasks]
    for i in range(SFT_START * len(tasks)):
        number, place = divmod(i, len(tasks))
        if number >= (sources[place].size or SFT_START):
            continue  # a file has no more questions for the evaluation
        problem = sources[place].problem(number)
        found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


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


# -- figures ---------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k answers is right, from n answers of which c are: unbiased for k <= n
    (2107.03374, eq. 1). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sqrt(variance / n) with n - 1 in the variance; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def summary(episodes: Sequence[Episode], samples: int = 1) -> dict:
    """Accuracy (avg@samples), pass@k for k = 4, 16, ... below samples and for samples itself, standard errors
    over questions, and behaviour.measure(). The episodes of a question stand together, `samples` of each."""
    right = [sum(e.correct for e in episodes[i : i + samples]) for i in range(0, len(episodes), samples)]
    row: dict = {"questions": len(right), "episodes": len(episodes)}
    row["accuracy"], row["stderr"] = mean_error([r / samples for r in right])
    for k in _ks(samples):
        chances = [pass_at_k(samples, r, k) for r in right]
        row[f"pass@{k}"], row[f"pass@{k}_stderr"] = mean_error(chances)
    return row | behaviour.measure(episodes)


def _ks(samples: int) -> list[int]:
    """pass@k is shown for these; pass@1 is avg@k."""
    return [k for k in (4, 16, 64, 256) if k < samples] + [samples] * (samples > 1)


def macro(rows: Sequence[dict]) -> dict:
    """The mean of tasks' rows: accuracy and pass@k, every task with the same weight. The tasks are taken as
    given, so that the error is that of their questions alone: sqrt(sum of squared errors) / tasks."""
    mean: dict = {"tasks": len(rows), "questions": sum(r["questions"] for r in rows)}
    for name in ["accuracy", *(n for n in rows[0] if n.startswith("pass@") and not n.endswith("_stderr"))]:
        error = "stderr" if name == "accuracy" else f"{name}_stderr"
        errors = [r[error] for r in rows]
        mean[name] = math.fsum(r[name] for r in rows) / len(rows)
        mean[error] = None if None in errors else math.hypot(*errors) / len(rows)
    return mean


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


def _measured(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + (f" +-{error:.3f}" if error is not None else "")


# -- comparing runs --------------------------------------------------------------------------------


def permutation_test(differences: Sequence[int]) -> float:
    """Two-sided p-value of the paired permutation test, exact. differences: per question, B's right answers
    minus A's, in whole numbers.

    If the runs were the same, exchanging their answers to any question would change nothing: each difference
    would be as likely with the other sign. p is the share of the 2^n choices of signs whose sum is at least
    as far from 0 as the observed one. The sum has the characteristic function prod cos(d_i theta), and its
    Fourier transform over enough points gives the chance of each sum without drawing or enumerating signs.
    With differences of -1, 0 and 1 it is the exact McNemar (sign) test. Rounding is about 1e-15.
    """
    sizes = Counter(abs(d) for d in differences if d)
    observed, reach = abs(sum(differences)), sum(size * n for size, n in sizes.items())
    if observed == 0:
        return 1.0
    points = 2 * reach + 1  # one for each sum from -reach to reach
    theta = 2 * np.pi / points * np.arange(points)
    wave = np.ones(points)
    for size, n in sizes.items():
        wave *= np.cos(size * theta) ** n
    chances = np.fft.fft(wave).real / points  # of the sums 0, 1, ..., reach, -reach, ..., -1
    return float(np.clip(2 * chances[observed : reach + 1].sum(), 0.0, 1.0))


def read_results(path: str) -> dict:
    """A file written by --out. Raises UsageError where it is none."""
    fields = {"task", "index", "family", "digest", "correct"}
    row = {"purposes", *(statistic.__name__ for statistic in behaviour.STATISTICS)}
    try:
        found = json.loads(Path(path).read_text())
        complete = row <= found["overall"]["micro"].keys() and "model" in found["config"]
        complete &= len(found["questions"]) > 0
        complete &= all(fields <= q.keys() and len(q["correct"]) > 0 for q in found["questions"])
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a file written by evaluate.py --out") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UsageError(f"{path}: no results of an evaluation; expected a file written by evaluate.py --out")
    return found


def _asked(found: dict) -> dict[tuple, dict]:
    return {(q["task"], q["index"], q["digest"]): q for q in found["questions"]}


def check_same_questions(runs: dict[str, dict], paths: dict[str, str]) -> None:
    """Raises UsageError naming a question that one run was asked and the first was not, or the other way."""
    first, *others = runs
    for name in others:
        here, there = _asked(runs[first]).keys(), _asked(runs[name]).keys()
        only = [f"{len(a - b)} only in {paths[x]}" for a, b, x in ((here, there, first), (there, here, name))]
        if here != there:
            task, index, _ = min(here ^ there)
            raise UsageError(
                f"{paths[first]} and {paths[name]} asked different questions ({', '.join(only)}; one is "
                f"{task}, question {index}); expected runs with the same tasks, --split and --questions"
            )


def paired(a: Sequence[dict], b: Sequence[dict]) -> dict:
    """Two runs' answers to the same questions, in the same order: the difference of their accuracies (b - a),
    its standard error over questions, and the p-value of permutation_test."""
    share = [[sum(q["correct"]) / len(q["correct"]) for q in run] for run in (a, b)]
    row: dict = {"questions": len(a)}
    row["accuracy"], row["stderr"] = mean_error([y - x for x, y in zip(*share, strict=True)])
    unit = math.lcm(*(len(q["correct"]) for q in (*a, *b)))
    whole = [[round(x * unit) for x in run] for run in share]
    row["p"] = permutation_test([y - x for x, y in zip(*whole, strict=True)])
    return row


def compare(paths: Sequence[str]) -> str:
    """Runs side by side, each against the first: a table of accuracies, differences and p-values, then the
    behaviour statistics. Raises UsageError where they asked other questions."""
    if len(paths) < 2 or any(p.startswith("-") for p in paths):
        raise UsageError(
            "compare takes files written by --out: evaluate.py compare A.json B.json [C.json ...]"
        )
    named = {chr(ord("A") + i): path for i, path in enumerate(paths)}
    runs = {name: read_results(path) for name, path in named.items()}
    check_same_questions(runs, named)
    asked = [_asked(found) for found in runs.values()]
    rows: dict[str, list[dict]] = {}
    for label, keys in _groups(asked[0]).items():
        answers = [[run[key] for key in keys] for run in asked]
        rows[label] = [_accuracy(a) | {"than_first": paired(answers[0], a)} for a in answers]
    tasks = [row for label, row in rows.items() if label in {key[0] for key in asked[0]}]
    if len(tasks) > 1:
        columns = list(zip(*tasks, strict=True))
        rows[f"mean of {len(tasks)} tasks"] = [
            macro(c) | {"than_first": macro([row["than_first"] for row in c])} for c in columns
        ]
    behaviours = {name: found["overall"]["micro"] for name, found in runs.items()}
    parts = [_legend(named, runs), _side_by_side(rows, list(runs)), behaviour.table(behaviours)]
    return "\n\n".join(parts)


def _groups(asked: dict[tuple, dict]) -> dict[str, list[tuple]]:
    """Label -> questions: each task, each family where there are several, all."""
    tasks: dict[str, list[tuple]] = {}
    families: dict[str, list[tuple]] = {}
    for key, q in sorted(asked.items()):
        tasks.setdefault(q["task"], []).append(key)
        families.setdefault(f"{q['family']}, all questions", []).append(key)
    return tasks | (families if len(families) > 1 else {}) | {"all questions": list(asked)}


def _accuracy(answers: Sequence[dict]) -> dict:
    mean, error = mean_error([sum(q["correct"]) / len(q["correct"]) for q in answers])
    return {"questions": len(answers), "accuracy": mean, "stderr": error}


def _legend(named: dict[str, str], runs: dict[str, dict]) -> str:
    """A line per run: its file, and the options in which the runs differ."""
    options = [found["config"] for found in runs.values()]
    differ = [k for k in options[0] if k != "out" and any(o.get(k) != options[0][k] for o in options)]
    lines = []
    for name, found in runs.items():
        words = [f"--{k.replace('_', '-')} {found['config'].get(k)}" for k in differ]
        lines.append(f"{name}  {named[name]}  {' '.join(words)}".rstrip())
    return "\n".join(lines)


def _side_by_side(rows: dict[str, list[dict]], names: Sequence[str]) -> str:
    """Accuracies of all runs, then each later run minus the first; p where all questions of a kind count."""
    width = max(map(len, rows))
    head = f"{'':{width}} questions  " + "".join(f"{name:<15}" for name in names)
    lines = [head + "".join(f"{f'{name} - {names[0]}':<16}{'p':<9}" for name in names[1:])]
    for label, row in rows.items():
        line = f"{label:{width}} {row[0]['questions']:9}  "
        line += "".join(f"{_measured(r['accuracy'], r['stderr']):<15}" for r in row)
        for gain in (r["than_first"] for r in row[1:]):
            p = gain.get("p") if label.endswith("all questions") else None
            shown = "" if p is None else f"{p:.3g}" if p >= 1e-12 else "<1e-12"
            line += f"{_measured(gain['accuracy'], gain['stderr'], '+'):<16}{shown:<9}"
        lines.append(line.rstrip())
    test = "p: exact paired permutation test over questions, two-sided, uncorrected for the number of tests"
    return "\n".join([*lines, test])


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
        ask = partial(answer, *checkpoint.load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed))
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
