"""Parts of the sources of coldstart.py: styles of prompting, sampled episodes, solutions to rewrite."""

from collections.abc import Sequence

from episode import Episode, Finish
from plumbing.config import UsageError, one_of, read_text
from plumbing.ranks import World
from rollout import Environment
from sandbox import Sandbox
from tasks import Problem, get_protocol
from tokenizer import Tokenizer
from trajectories import checks
from trajectories.faults import Fault, unfinished
from trajectories.ledger import Ledger
from trajectories.questions import digest, evaluated
from trajectories.records import answer_messages, trajectory

STYLES = ("free", "text", "code", "alternating")
ALTERNATING = (
    "Solve the question by turns: some reasoning in words, then a Python program for one step of it, in a "
    "block that begins with {} and ends with {}; it is run for you and its output comes back. Reason about "
    "the output, write the next program, and so on, at least two programs in all. {}"
)


def environments(cfg, sandbox: Sandbox, tokenizer: Tokenizer | None = None) -> dict[str, Environment]:
    """The environment of each style in --styles: "free" is --protocol, with the head prompt of --system-file;
    "text" and "code" are the protocols of these names; "alternating" has a head prompt of its own. Raises
    UsageError."""
    free = get_protocol(cfg.protocol)
    fence = ("<code>\n```python", "```\n</code>") if free.open == "<code>" else ("```python", "```")
    alternating = ALTERNATING.format(*fence, f"Finish with {free.answer.format('answer')}.")
    heads = {"free": read_text(cfg.system_file, "--system-file"), "alternating": alternating}
    found = {}
    for name in map(str.strip, cfg.styles.split(",")):
        one_of("--styles", name, STYLES)
        shape = free if name in heads else get_protocol(name)
        options = {"system": heads.get(name), "skip_ungraded": True}
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
    return trajectory(episode.problem, messages, "model", environment.protocol.name, system)


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
    taboo = {task: evaluated(task, cfg.evaluation, cfg.bbh) for task in {p.task for p, _ in solutions}}
    jobs = {}
    for number, (problem, solution) in enumerate(solutions):
        if digest(problem.question) in taboo[problem.task]:
            ledger.add(problem.task, Fault("evaluation"))
            continue
        text = digest(repr((problem.question, problem.answer, solution))).hex()
        jobs[f"{number} {problem.task} {problem.index} {text}"] = problem, solution
    if not jobs:
        raise UsageError(f"--data {cfg.data}: {len(solutions)} questions, none that evaluation does not ask")
    return jobs
