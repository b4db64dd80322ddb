"""How often a model is right, how it used the interpreter, and whether two models differ.

    python evaluate.py --model runs/demo/grpo/final --tasks toy --split test --questions 370 --out grpo.json
    python evaluate.py --model DIR --tasks symbench,bbh,reasoning_gym --split test --questions 3700
    python evaluate.py --model DIR --tasks symbench --symbench FOLDER        # its questions as published
    python evaluate.py --model DIR --tasks aime.jsonl --preset retool        # 32 answers, 16384 tokens each
    python evaluate.py --url http://localhost:8000/v1 --model NAME --protocol r1ci    # a model behind HTTP
    python evaluate.py compare sft.json grpo.json

Questions have indices below 10,000, which no training stage draws from. Each question is answered k =
--samples times:

    avg@k     mean over all answers; its standard error is over questions, because the answers to one question
              depend on each other and count as one cluster
    pass@k    probability that one of k answers is right

A family's row and "mean of tasks" weigh every task alike, as the papers do (macro); their error is that of
drawing other questions of these tasks. "all questions" weighs every question alike (micro); its error is that
of drawing other questions of other tasks as well.

`compare` takes files written by --out for the same questions. It tests each run against the first with the
exact paired permutation test over questions (`permutation_test`; with one answer each it is McNemar's).

With --url the model is one behind an OpenAI-compatible address, and its programs run in our sandbox. The key
is read from the environment, ABACUS_API_KEY. Statistics that need the tokens themselves are empty.
An answer that the server filters or refuses is not right; its finish is "refused", and a line counts these.
--url-fields is for fields that it refuses.

With --out FILE, answers are kept in FILE.part as they come, and the same command goes on from there. Under
torchrun every GPU has the whole model, and takes the next question when it has a free slot:

    torchrun --nproc_per_node 8 evaluate.py --model DIR --tasks symbench --split test --out symbench.json
"""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import behaviour
from analysis.compare import compare, macro, permutation_test, with_error
from episode import Call, Episode, Finish
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.http import CallError
from plumbing.journal import Journal, finish, new_file
from plumbing.ranks import World
from rollout import Environment
from sandbox import Result
from tasks import Problem, get, get_protocol, select, use_bbh, use_symbench
from tokenizer import Source, Tokenizer
from training.evaluation import (
    Answering,
    answer,
    answer_key,
    answered_at,
    pass_at_k,
    questions,
    summary,
)
from training.interpreter import open_sandbox, weakest
from training.limits import PromptLimit
from training.loading import load_model
from training.options import EvaluationQuestions, ModelOptions, Ranks, SandboxOptions
from training.papers import EVALUATION
from training.reinforcement import make_environment
from trajectories.endpoint import Endpoint, EndpointOptions, converse
from trajectories.faults import Fault
from trajectories.teachers import gather, refusal

__all__ = ["answer", "compare", "pass_at_k", "permutation_test", "questions", "summary"]


@dataclass(frozen=True)
class Config(Answering, EvaluationQuestions, EndpointOptions, ModelOptions, SandboxOptions, Ranks):
    """Evaluation."""

    split: str | None = option(None, "of a suite: train, test, or both without it")
    questions: int = option(200, "in all, spread evenly over the tasks; no two alike", least=1)
    out: str | None = option(None, "JSON file for the tables and every answer, which `compare` reads")


def open_journal(cfg: Config, world: World) -> Journal | None:
    """What keeps the answers of this rank in FILE.part, with --out FILE. Raises UsageError for those of a run
    with other options."""
    loose = {"out", "slots", "device", "rank_timeout", *(f.name for f in dataclasses.fields(SandboxOptions))}
    about = {name: value for name, value in config.to_json(cfg).items() if name not in loose}
    return Journal(cfg.out, about, world.rank) if cfg.out else None


# -- a model behind HTTP ---------------------------------------------------------------------------


def check_url(cfg: Config, world: World) -> None:
    """Raises UsageError for options that mean nothing with --url, and where the model has no name."""
    if world.size > 1:
        raise UsageError(f"--url {cfg.url}: one process asks, --slots at once; start it without torchrun")
    if cfg.model == "tiny":
        raise UsageError(f"--url {cfg.url}: expected --model NAME as well, the server's name of its model")
    for name in ("device", "dtype", "max_prompt", "seed"):
        if (value := getattr(cfg, name)) != getattr(Config, name):
            raise UsageError(f"--{name.replace('_', '-')} {value}: has no effect with --url; leave it out")


def answer_by_url(
    environment: Environment, asked: Sequence[Problem], cfg: Config, journal: Journal | None
) -> list[Episode]:
    """answer(), by a model behind HTTP; its episodes have no tokens, at best their number. Questions that the
    server refuses have no answer, and a line counts them. Raises UsageError where the server answers no
    question."""
    episodes = [Episode(p, place) for place, p in enumerate(asked) for _ in range(cfg.samples)]
    jobs = {answer_key(environment, e.problem, i): e for i, e in enumerate(episodes)}
    with Endpoint(cfg.url, cfg.model, fields=cfg.url_fields, workers=1) as endpoint:

        def work(jobs: list[Episode]) -> list[dict | Fault]:
            return [exchanged(endpoint, e.problem, environment, cfg) for e in jobs]

        found = gather(jobs, work, journal, threads=min(cfg.slots, len(jobs)), endpoint=endpoint)
    for key, episode in jobs.items():
        outcome = found[key]
        if isinstance(outcome, Fault):
            episode.finish = Finish.REFUSED
            continue
        episode.finish, episode.written = outcome["finish"], outcome["tokens"]
        episode.calls = [Call(code, Result(**result), 0) for code, result in outcome["calls"]]
        if episode.finish != Finish.REFUSED:
            environment.grade(episode, outcome["text"])
    if refused := [e for e in episodes if e.finish == Finish.REFUSED]:
        print(
            f"{len(refused)} of {len(episodes)} answers were refused or filtered by the server; none is right"
        )
    return episodes


def exchanged(endpoint: Endpoint, problem: Problem, environment: Environment, cfg: Config) -> dict | Fault:
    """One answer through --url, as JSON for the journal; a Fault where the server refuses the question."""
    try:
        options = {"temperature": cfg.temperature, "top_p": cfg.top_p}
        asking = replace(environment, system=environment.head(problem))
        exchange = converse(endpoint, problem.question, asking, **options)
    except CallError as error:
        return refusal(error)
    if exchange.failed:
        environment.blame_sandbox(problem, exchange.failed)
    calls = [[call.code, vars(call.result)] for call in exchange.calls]
    found = {"text": exchange.text, "finish": exchange.finish, "calls": calls}
    return found | {"tokens": exchange.completion_tokens}


# -- results -----------------------------------------------------------------------------------------


def results(episodes: Sequence[Episode], cfg: Config, tokenizer: Tokenizer | None = None) -> dict:
    """All that is known of an evaluation, as JSON: a row per task and family, two overall, each question;
    with a tokenizer, each answer's whole text."""
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
        "questions": [_question(found, tokenizer) for found in asked],
        "grader_failed": sum(e.grader_failed for e in episodes),  # on answers, which count as wrong
    }


def _question(episodes: Sequence[Episode], tokenizer: Tokenizer | None) -> dict:
    """One question's line in the results; its digest tells whether another run asked the same."""
    problem = episodes[0].problem
    texts = {"texts": [_text(e, tokenizer) for e in episodes]} if tokenizer else {}
    return texts | {
        "task": problem.task,
        "index": problem.index,
        "family": get(problem.task).suite,
        "digest": problem.digest,
        "correct": [bool(e.correct) for e in episodes],
        "answers": [e.answer for e in episodes],
        "finish": [e.finish for e in episodes],
    }


def _text(e: Episode, tokenizer: Tokenizer) -> str:
    """What follows the prompt, the interpreter's text included."""
    return tokenizer.decode(e.tokens[e.source.count(Source.PROMPT) :])


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
    ks = answered_at(samples)
    head = f"{'':{width}} questions  {f'avg@{samples}':<15}" + "".join(f"{f'pass@{k}':<9}" for k in ks)
    lines = [head + "  code  calls failed  tokens"]
    for name, r in rows.items():
        line = f"{name:{width}} {r['questions']:9}  {with_error(r['accuracy'], r['stderr']):<15}"
        line += "".join(f"{r[f'pass@{k}']:<9.3f}" for k in ks)
        if "calls" in r:
            line += f"  {r['code_ratio']:4.2f} {r['calls']:6.2f} {r['calls_failed']:6.2f} "
            line += "" if r["response_tokens"] is None else f"{r['response_tokens']:7.1f}"
        lines.append(line.rstrip())
    return "\n".join(lines)


# -- the command -------------------------------------------------------------------------------------


def about_questions(tasks: Sequence[str], asked: Sequence[Problem], cfg: Config, left_out: int) -> list[str]:
    """What is asked, and what is not, in lines."""
    taken = Counter(p.task for p in asked)
    lines = [
        f"{cfg.model}, {cfg.protocol}, temperature {cfg.temperature:g}, top-p {cfg.top_p:g}: {len(asked)} "
        f"questions of {len(taken)} tasks, answered {cfg.samples} times each"
    ]
    for name in tasks:
        if (task := get(name)).suite == "math":
            again = f" ({task.rows} rows)" if task.rows > task.size else ""
            lines.append(f"{name}: {taken[name]} of its {task.size} different questions{again} are asked")
    if left_out:
        lines.append(f"--max-prompt {cfg.max_prompt}: left out {left_out} questions with longer prompts")
    if len(asked) < cfg.questions:
        lines.append(
            f"--questions {cfg.questions}: these tasks have no more than {len(asked)} different ones"
        )
    if absent := len(tasks) - len(taken):
        lines.append(f"--questions {cfg.questions}: {absent} of the {len(tasks)} tasks are not asked")
    return lines


def run(cfg: Config, world: World) -> dict:
    """Ask, answer and grade; all that is known of it, as JSON, on every rank. Raises UsageError."""
    get_protocol(cfg.protocol)
    if cfg.temperature == 0 and cfg.samples > 1:
        raise UsageError(
            f"--temperature 0: all {cfg.samples} answers would be the same; give --samples 1 as well"
        )
    if cfg.url:
        check_url(cfg, world)
    use_bbh(cfg.bbh)
    use_symbench(cfg.symbench)
    tasks = list(dict.fromkeys(select(cfg.tasks, cfg.split)))
    model, tokenizer = None, None
    if not cfg.url:
        model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed)
    fits = PromptLimit(make_environment(cfg, cfg, tokenizer, None), cfg.max_prompt)
    asked = questions(tasks, cfg.questions, fits)
    if not asked:
        raise UsageError(f"--max-prompt {cfg.max_prompt}: all {fits.left_out} prompts are longer; raise it")
    if world.main:
        print("\n".join(about_questions(tasks, asked, cfg, fits.left_out)))
    journal = open_journal(cfg, world)
    with open_sandbox(cfg, cfg.timeout, quiet=not world.main) as sandbox:
        environment = make_environment(cfg, cfg, tokenizer, sandbox)
        if cfg.url:
            episodes = answer_by_url(environment, asked, cfg, journal)
        else:
            episodes = answer(model, environment, asked, cfg, world, journal)
        return results(episodes, cfg, tokenizer) | {"sandbox": weakest(world, sandbox)["level"]}


def write(cfg: Config, world: World) -> dict:
    """run(), and on rank 0 its results in the new file --out, where it is given. Raises UsageError."""
    if world.main:
        new_file(cfg.out, "--out")
    world.barrier()
    found = run(cfg, world)
    if cfg.out and world.main:
        finish(cfg.out, json.dumps(found, indent=2) + "\n")
    return found


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        print(compare(sys.argv[2:]))
        return
    cfg = config.parse(Config, __doc__, presets=EVALUATION, first=("model", "tasks", "samples"))
    with World("cpu" if cfg.url else cfg.device, cfg.rank_timeout, graceful=False) as world:
        found = write(cfg, world)
    if not world.main:
        return
    if failed := found["grader_failed"]:
        print(f"{failed} answers made the grader fail; they count as wrong")
    print("\n" + table(found) + "\n\n" + behaviour.table({"": found["overall"]["micro"]}))


if __name__ == "__main__":
    config.run(main)
