"""The episodes of a run, to read: in the terminal, or as one page for a browser.

    python -m analysis.view                               # the runs under runs/
    python -m analysis.view runs/grpo --wrong --error     # in the pager: wrong answers with a failed program
    python -m analysis.view runs/grpo --step 21 --html step21.html

The page needs no network. Groups stand side by side with their rewards; hovering a token shows its id,
log-prob, entropy, source and advantage, and whether it is trained. RUN comes first; an episode is shown when
all the filters given hold for it. A folder that only contains runs is listed.
"""

import contextlib
import html
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, groupby, islice, pairwise
from pathlib import Path

from analysis.plot import PANELS
from analysis.transcripts import PER_TOKEN, Episodes, Filter, metrics, options_of, verdict
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.progress import colourful
from tasks import PROTOCOLS, Protocol
from tokenizer import COLOURS, Source, printable

PAGE_LIMIT = 200  # episodes; a browser is slow with more
LOSSES = {"loss": {"loss": "training", "validation_loss_policy": "validation"}}
TINTS = {"prompt": COLOURS[Source.PROMPT], "policy": COLOURS[Source.POLICY], "code": "\033[36m"}
TINTS |= {"tool": COLOURS[Source.TOOL], "answer": "\033[1;32m"}


@dataclass(frozen=True)
class Config(Filter):
    """Page."""

    html: str | None = option(None, f"page to write, with at most {PAGE_LIMIT} episodes")


# -- one episode -----------------------------------------------------------------------------------


def marks(protocol: Protocol) -> re.Pattern:
    """A pattern of the code blocks and answers in a turn of the model."""
    opening, closing = re.escape(protocol.open), re.escape(protocol.close)
    before, after = map(re.escape, protocol.answer.format("\0").split("\0"))
    code = rf"(?P<code>{opening}.*?(?:{closing}|\Z))|" if opening else ""
    # not past another opening mark: else many of them, none closed, would take quadratic time
    return re.compile(rf"{code}(?P<answer>{before}(?:(?!{before}).)*?{after})", re.DOTALL)


def segments(spans: Sequence[Sequence[str]], protocol: Protocol | None) -> Iterator[tuple[str, str]]:
    """The spans as (kind, text): prompt, policy, tool, and of the policy's text what is code or answer.

    >>> list(segments([["POLICY", "So <<<4>>>"]], PROTOCOLS["r1ci"]))
    [('policy', 'So '), ('answer', '<<<4>>>')]
    """
    for name, text in spans:
        if name != "POLICY" or protocol is None:
            yield name.lower(), text
            continue
        place = 0
        for found in marks(protocol).finditer(text):
            yield "policy", text[place : found.start()]
            yield found.lastgroup, found[0]
            place = found.end()
        yield "policy", text[place:]


def headline(record: dict, graded: bool = True) -> str:
    """What an episode was and what it was worth, in a line."""
    parts = [f"step {record['step']}", f"{record['task']}, question {record['index']}"]
    if graded:
        parts += [verdict(record), f"reward {record['reward']:g}"]
    trained = list(compress(record.get("advantages", ()), record.get("trained", ())))
    if trained:
        parts.append(f"advantage {math.fsum(trained) / len(trained):.3g}")
    parts += [f"answer {record['answer']!r}"] if record["answer"] is not None else []
    programs = ", ".join(map(str, record["calls"]))
    finish = record["finish"] and f"finish {record['finish']}"
    return " · ".join(filter(None, [*parts, programs and f"programs {programs}", finish]))


def as_text(record: dict, protocol: Protocol | None, *, graded: bool, colour: bool) -> str:
    """An episode for the terminal: who wrote a line stands before it."""
    head = printable(headline(record, graded)).replace("\n", " ")
    lines = [f"\033[1m{head}\033[0m" if colour else head]
    for kind, text in segments(record["spans"], protocol):
        tint, end = (TINTS[kind], "\033[0m") if colour else ("", "")
        said = printable(text).strip("\n")
        for i, line in enumerate(said.split("\n") if said.strip() else ()):
            lines.append(f"{'' if i else kind:>6}  {tint}{line}{end}")
    return "\n".join(lines) + "\n\n"


def for_page(record: dict, protocol: Protocol | None, graded: bool) -> dict:
    """An episode for the page: its segments cut into tokens, and the numbers of the tokens.

    A token belongs to the segment in which it begins. Without `characters` a segment is a single piece.
    """
    kept = {name: record[name] for name in ("answer", "calls", "finish")}
    kept |= {"reward": record["reward"], "verdict": verdict(record)} if graded else {}
    parts = list(segments(record["spans"], protocol))
    if "characters" not in record:
        return kept | {"segments": [[kind, [text]] for kind, text in parts if text]}
    text, kinds = "".join(t for _, t in parts), [kind for kind, t in parts for _ in t]
    places = list(accumulate(record["characters"], initial=0))
    cut = [(kinds[min(a, len(kinds) - 1)] if kinds else "policy", text[a:b]) for a, b in pairwise(places)]
    pieces = [[kind, [piece for _, piece in run]] for kind, run in groupby(cut, key=lambda pair: pair[0])]
    return kept | {"segments": pieces} | {name: record[name] for name in PER_TOKEN if name in record}


# -- the page --------------------------------------------------------------------------------------


def curves(lines: Sequence[dict]) -> list[dict]:
    """Panels of metrics: {"title": ..., "lines": [{"label": ..., "points": [[step, value], ...]}]}."""
    panels = []
    for title, names in (PANELS | LOSSES).items():
        drawn = []
        for name, label in names.items():
            points = [[m["step"], m[name]] for m in lines if {"step", name} <= m.keys()]
            drawn += [{"label": label, "points": points}] if len(points) > 1 else []
        panels += [{"title": title, "lines": drawn}] if drawn else []
    return panels


def finite(value):
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(folder: Path, episodes: Episodes, options: dict, protocol: Protocol | None) -> tuple[str, str]:
    """The page, analysis/view.html with the run's data in it; and in a line what it has."""
    chosen = list(islice(episodes, PAGE_LIMIT + 1))
    count = episodes.count()
    if len(chosen) > PAGE_LIMIT:
        chosen.pop()
        count = f"the first {PAGE_LIMIT} episodes that are selected; --step, --task or --search select others"
    groups, graded = {}, options["script"] != "sft"
    for record in chosen:
        place = {name: record[name] for name in ("step", "task", "index")}
        group = groups.setdefault(tuple(place.values()), place | {"episodes": []})
        group["episodes"].append(for_page(record, protocol, graded))
    data = {"run": str(folder), "script": options["script"], "size": options.get("group"), "count": count}
    data |= {"curves": curves(metrics(folder)), "groups": list(groups.values())}
    # no text of a model can end the script element
    inside = json.dumps(finite(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    filled = {"{{title}}": html.escape(folder.name), "{{data}}": inside}
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return re.sub("|".join(filled), lambda found: filled[found[0]], template), count


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all. Raises UsageError where it cannot be written."""
    try:
        config.write_text(path, text)
    except OSError as error:
        raise UsageError(f"--html {path}: {error}; expected a file in a folder to write to") from None


# -- the terminal ----------------------------------------------------------------------------------


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder and in its folders, by name."""
    found = (path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json"))
    return sorted(path for path in found if options_of(path)["script"])


def table(runs: Sequence[Path], now: float) -> str:
    """A line per run: folder, script, steps, last accuracy, age since the last step."""
    rows = [("folder", "script", "steps", "accuracy", "age")]
    for folder in runs:
        options, path, lines = options_of(folder), folder / "metrics.jsonl", metrics(folder)
        steps = f"{lines[-1]['step'] if lines else 0}"
        steps += f" of {options['steps']}" if options.get("steps") else ""
        accuracy = next((f"{m['accuracy']:.3f}" for m in reversed(lines) if "accuracy" in m), "-")
        seconds = now - (path if path.exists() else folder / "config.json").stat().st_mtime
        units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
        age = next((f"{seconds // size:.0f} {unit}" for size, unit in units if seconds >= size), "0 s")
        rows.append((str(folder), options["script"], steps, accuracy, age))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def show(parts: Iterator[str]) -> None:
    """Write the parts as they are made: in a terminal to `less -R`, so that a long file opens at once."""
    first = next(parts)
    if not (sys.stdout.isatty() and shutil.which("less")):
        for part in chain([first], parts):
            sys.stdout.write(part)
        return
    with subprocess.Popen(["less", "-R"], stdin=subprocess.PIPE, encoding="utf-8", errors="replace") as pager:
        # Ctrl-C is for the pager
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError), pager.stdin:
            for part in chain([first], parts):
                pager.stdin.write(part)
                pager.stdin.flush()


def view(folder: Path, cfg: Config) -> None:
    """Show the run's selected episodes, or write their page. Raises UsageError where there are none."""
    options = options_of(folder)
    graded = options["script"] != "sft"
    if not graded and (cfg.right or cfg.wrong):
        raise UsageError(f"{folder}: trajectories of sft.py are not graded; leave out --right and --wrong")
    episodes = Episodes(folder / "episodes.jsonl", cfg)
    protocol = PROTOCOLS.get(str(options.get("protocol")))
    if cfg.html:
        text, count = page(folder, episodes, options, protocol)
        write_page(Path(cfg.html), text)
        print(f"{cfg.html}: {count}")
        return
    colour = colourful(sys.stdout)
    texts = (as_text(record, protocol, graded=graded, colour=colour) for record in episodes)
    show(chain(texts, (episodes.count() + "\n" for _ in range(1))))


def main() -> None:
    words = sys.argv[1:]
    named = words[: bool(words) and not words[0].startswith("-")]
    cfg = config.parse(Config, __doc__, words[len(named) :], first=("wrong", "step", "html"))
    folder = Path(*named or ["runs"])
    sys.stdout.reconfigure(errors="replace")
    if cfg.right and cfg.wrong:
        raise UsageError("--right and --wrong: no episode is both; give one of them")
    if cfg.html and Path(cfg.html).suffix != ".html":
        raise UsageError(f"--html {cfg.html}: expected a file name that ends in .html")
    if (folder / "episodes.jsonl").is_file():
        view(folder, cfg)
    elif not (runs := runs_in(folder)):
        found = "no episodes.jsonl and no runs in it" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {found}; expected the folder of a run, or of runs (docs/commands.md)")
    elif cfg != Config():
        raise UsageError(f"{folder}: a folder of {len(runs)} runs; name one of them before the options")
    else:
        print(table(runs, time.time()))


if __name__ == "__main__":
    config.run(main)
