"""What demo.py prints at its end: what each stage reached, the same question before and after RL."""

import itertools
import textwrap
from collections.abc import Sequence

from episode import Episode, spans
from tasks import names
from tokenizer import Source, Tokenizer


def table(rows: dict[str, dict]) -> str:
    """The summary for people: sampled / greedy, and how often code was used."""
    sets = next(iter(rows.values()))
    lines = [f"{'':10}" + "".join(f"{name.replace('_', ' '):>26}" for name in sets)]
    lines.append(f"{'':10}" + f"{'sampled  greedy  code':>26}" * len(sets))
    for stage, row in rows.items():
        cells = (f"{r['sampled']:.3f}   {r['greedy']:.3f}  {r['code_ratio']:.2f}" for r in row.values())
        lines.append(f"{stage:10}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def changed(before: Sequence[Episode], after: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """Up to three questions, with their episodes before and after RL. One of an unseen task, which had a
    program, was wrong and is right now; one whose program failed before and that is right now; a fact."""
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


def show(pairs: Sequence[tuple[Episode, Episode]], tokenizer: Tokenizer, width: int = 46) -> None:
    """Print the episodes of each question side by side."""
    for before, after in pairs:
        print(f"\n{before.problem.question}\n{'after SFT':{width}} | after GRPO")
        for left, right in itertools.zip_longest(
            lines(before, tokenizer, width), lines(after, tokenizer, width), fillvalue=""
        ):
            print(f"{left:{width}} | {right}")
