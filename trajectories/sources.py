"""Parts of the sources of coldstart.py: styles of prompting, sampled episodes, solutions to rewrite."""

import hashlib
from collections.abc import Sequence

from episode import Episode, Finish
from plumbing.config import UsageError, one_of
from plumbing.ranks import World
from rollout import Environment
from sandbox import Sandbox
from tasks import Problem, get_protocol, in_words, read_prompt
from tokenizer import Tokenizer
from trajectories import checks
from trajectories.faults import Fault, unfinished
from trajectories.ledger import Ledger
from trajectories.questions import evaluated
from trajectories.records import answer_messages, trajectory

PROMPTS = {  # style -> prompt; {} are the marks of a code block and the answer's
    "code": "Solve the question with Python, always. Reason first, then write a program in a block that "
    "begins with {} and ends with {}; it is run for you and its output comes back. {}",
    "alternating": "Solve the question by turns: some reasoning in words, then a Python program for one step "
    "of it, in a block that begins with {} and ends with {}; it is run for you and its output comes back. "
    "Reason about the output, write the next program, and so on, at least two programs in all. {}",
}
STYLES = ("free", "text", *PROMPTS)


def environments(cfg, sandbox: Sandbox, tokenizer: Tokenizer | None = None) -> dict[str, Environment]:
    """The environment of each style in --styles: "free" is --protocol, with the prompt of --prompt-file and
    --system-file; "text" is the protocol without code that has its answer format; "code" and "alternating"
    are --protocol with a prompt of their own. Raises UsageError."""
    free = get_protocol(cfg.protocol)
    fence = ("<code>\n```python", "```\n</code>") if free.open == "<code>" else ("```python", "```")
    answer, found = f"Finish with {free.answer.format('answer')}.", {}
    for name in map(str.strip, cfg.styles.split(",")):
        one_of("--styles", name, STYLES)
        options: dict = {"skip_ungraded": True}
        if name == "free":
            options |= read_prompt(cfg)
        elif name in PROMPTS:
            options["template"] = PROMPTS[name].format(*fence, answer) + "\n\n{question}"
        shape = in_words(free) if name == "text" else free
        found[name] = Environment(tokenizer, shape, sandbox, cfg, **options)
    return found


def from_episode(episode: Episode, environment: Environment) -> dict | list:
    """A sampled episode as a trajectory, or reason and detail of its fault: as JSON for the journal."""
    if episode.finish != Finish.STOP:
        fault = unfinished(episode.finish)
        return [fault.reason, fault.detail]
    messages = [{"role": "user", "content": episode.problem.question}]
    messages += answer_messages(episode, environment.tokenizer, environment.protocol)
    system = environment.head(episode.problem)
    return trajectory(
        episode.problem, messages, "model", environment.protocol.name, system, environment.template
    )


def keep_right(
    outcomes: dict[str, tuple[Problem, dict | list]], sandbox: Sandbox, world: World, ledger: Ledger
) -> None:
    """Enter outcomes of from_episode, by key: the trajectories whose programs, run again, show no fault. Each
    rank runs its share of the programs."""
    mine = world.share(key for key, (_, found) in outcomes.items() if isinstance(found, dict))
    records, problems = [outcomes[key][1] for key in mine], [outcomes[key][0] for key in mine]
    faults = checks.verify(records, problems, sandbox, sandbox.timeout)
    faults = dict(world.gather(list(zip(mine, faults, strict=True))))
    for key, (problem, found) in outcomes.items():
        fault = faults[key] if isinstance(found, dict) else Fault(*found)
        ledger.add(problem.task, fault or found)


def to_rewrite(
    solutions: Sequence[tuple[Problem, str]], cfg, ledger: Ledger
) -> dict[str, tuple[Problem, str]]:
    """Solutions by a key with a digest of their text, since the file may be edited between two starts.
    Questions that evaluation asks are entered as faults."""
    held_out = {task: evaluated(task, cfg.evaluation, cfg.bbh) for task in {p.task for p, _ in solutions}}
    jobs = {}
    for number, (problem, solution) in enumerate(solutions):
        if problem.digest in held_out[problem.task]:
            ledger.add(problem.task, Fault("evaluation"))
            continue
        text = repr((problem.question, problem.answer, solution))
        text = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
        jobs[f"{number} {problem.task} {problem.index} {text}"] = problem, solution
    if not jobs:
        raise UsageError(f"--data {cfg.data}: {len(solutions)} questions, none that evaluation does not ask")
    return jobs
