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
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice, pairwise
from pathlib import Path

from analysis.plot import PANELS
from plumbing import config
from plumbing.config import UsageError, nearest, option
from tasks import PROTOCOLS, Protocol
from tokenizer import COLOURS, Source, printable

PAGE_LIMIT = 200  # episodes; a browser is slow with more
SCRIPTS = {"per_task": "sft", "advantage": "grpo", "critic_lr": "ppo"}  # an option that one script alone has
LOSSES = {"loss": {"loss": "training", "validation_loss_policy": "validation"}}
PER_TOKEN = ("tokens", "source", "logprobs", "entropy", "advantages", "trained")
KEYS = {"step": int, "task": str, "index": int, "spans": list, "answer": (str, type(None)), "correct": bool}
KEYS |= {"reward": (int, float), "calls": list, "finish": str}
TINTS = {"prompt": COLOURS[Source.PROMPT], "policy": COLOURS[Source.POLICY], "code": "\033[36m"}
TINTS |= {"tool": COLOURS[Source.TOOL], "answer": "\033[1;32m"}


@dataclass(frozen=True)
class Config:
    """Options."""

    task: str | None = option(None, "episodes of this task")
    step: int | None = option(None, "episodes of this step")
    right: bool = option(False, "episodes with a right answer")
    wrong: bool = option(False, "episodes with a wrong answer")
    error: bool = option(False, "episodes with a program that failed")
    search: str | None = option(None, "episodes with this text, upper and lower case told apart")
    html: str | None = option(None, f"page to write, with the first {PAGE_LIMIT} of the episodes")


# -- what a run folder holds -----------------------------------------------------------------------


def records(path: Path) -> list[dict]:
    """The objects of a JSON or JSON Lines file, without what is damaged; none where it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        text = path.read_bytes()
        for part in [text] if path.suffix == ".json" else text.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(part))
    return [record for record in found if isinstance(record, dict)]


def options_of(folder: Path) -> dict:
    """The options of a run, and under "script" the one that made it, or "" if that is not known."""
    options = next(iter(records(folder / "config.json")), {})
    return options | {"script": next((name for key, name in SCRIPTS.items() if key in options), "")}


def verdict(record: dict) -> str:
    """Whether an episode's answer is right, wrong or not graded."""
    return "not graded" if math.isnan(record["reward"]) else "right" if record["correct"] else "wrong"


def is_whole(record: object) -> bool:
    """Whether an episode has all that is shown, in the right form; the numbers of its tokens may be missing."""
    if not isinstance(record, dict) or not all(isinstance(record.get(k), v) for k, v in KEYS.items()):
        return False
    spans, names = record["spans"], Source.__members__
    if not all(
        isinstance(s, list) and len(s) == 2 and s[0] in names and isinstance(s[1], str) for s in spans
    ):
        return False
    lists = [record[name] for name in (*PER_TOKEN, "characters") if name in record]
    if not all(isinstance(row, list) and len(row) == len(record["tokens"]) for row in lists):
        return False
    numbers = all(isinstance(x, (int, float)) for row in lists for x in row)
    sizes = record.get("characters")
    return numbers and (sizes is None or sum(sizes) == sum(len(text) for _, text in spans))


def filters(cfg: Config) -> list[tuple[re.Pattern, Callable[[dict], bool]]]:
    """Each filter as a pattern that the line of a selected episode has, and as a condition on the episode.
    Most lines fail the pattern, and need not be parsed."""
    text = json.dumps(cfg.search)[1:-1]
    every = [
        (
            cfg.task is not None,
            rf'"task":\s*{re.escape(json.dumps(cfg.task))}',
            lambda e: e["task"] == cfg.task,
        ),
        (cfg.step is not None, rf'"step":\s*{cfg.step}\b', lambda e: e["step"] == cfg.step),
        (cfg.right, r'"correct":\s*true', lambda e: verdict(e) == "right"),
        (cfg.wrong, r'"correct":\s*false', lambda e: verdict(e) == "wrong"),
        (cfg.error, r'"calls":\s*\[(?!(?:"ok"[,\s]*)*\])', lambda e: any(s != "ok" for s in e["calls"])),
        (cfg.search is not None, re.escape(text), lambda e: any(cfg.search in t for _, t in e["spans"])),
    ]
    return [(re.compile(pattern.encode()), keep) for given, pattern, keep in every if given]


class Episodes:
    """The selected episodes of a file, parsed one by one as they are asked for.

    After the last one, `total` and `damaged` count the lines of the file, `selected` the episodes. Raises
    UsageError where no line is selected, which says what there is to select.
    """

    def __init__(self, path: Path, cfg: Config):
        self.path, self.cfg, self.filters = path, cfg, filters(cfg)
        self.total = self.damaged = self.selected = 0

    def __iter__(self) -> Iterator[dict]:
        with open(self.path, "rb") as f:
            for line in filter(bytes.strip, f):
                self.total += 1
                if not all(pattern.search(line) for pattern, _ in self.filters):
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if not is_whole(record):
                    self.damaged += 1
                elif all(keep(record) for _, keep in self.filters):
                    self.selected += 1
                    yield record
        if not self.selected:
            raise UsageError(f"{self.path}: {self._why()}")

    def _why(self) -> str:
        if not self.total:
            return "no episodes yet; expected the folder of a run that made at least one step"
        if self.damaged == self.total:
            return (
                f"none of its {self.total} lines is an episode; expected the file that a training run wrote"
            )
        heads = [re.search(rb'"step":\s*(\d+), "task":\s*"([^"]*)"', line) for line in open(self.path, "rb")]
        steps, tasks = zip(*((int(h[1]), h[2].decode(errors="replace")) for h in heads if h), strict=True)
        tasks = sorted(set(tasks))
        guess = "" if self.cfg.task in (None, *tasks) else nearest(self.cfg.task, tasks)
        known = f"its steps are {min(steps)} to {max(steps)}, its tasks {', '.join(tasks[:5])}"
        more = f" and {len(tasks) - 5} more" * (len(tasks) > 5)
        return f"none of its {self.total} episodes is selected{guess}; {known}{more}"

    def count(self) -> str:
        """What was selected, in a line; after the last episode."""
        damaged = f"; {self.damaged} damaged lines are left out" if self.damaged else ""
        return f"{self.selected} of {self.total} episodes{damaged}"


# -- one episode -----------------------------------------------------------------------------------


def marks(protocol: Protocol | None) -> re.Pattern:
    """A pattern of the code blocks and answers in a turn of the model."""
    if protocol is None:
        return re.compile(r"(?!)")
    head, tail = (re.escape(part) for part in protocol.answer.format("\0").split("\0"))
    code = rf"(?P<code>{re.escape(protocol.open)}.*?(?:{re.escape(protocol.close)}|\Z))|" * bool(
        protocol.open
    )
    return re.compile(rf"{code}(?P<answer>{head}.*?{tail})", re.DOTALL)


def segments(spans: Sequence[Sequence[str]], protocol: Protocol | None) -> Iterator[tuple[str, str]]:
    """The spans as (kind, text): prompt, policy, tool, and of the policy's text what is code or answer.

    >>> list(segments([["POLICY", "So <<<4>>>"]], PROTOCOLS["r1ci"]))
    [('policy', 'So '), ('answer', '<<<4>>>')]
    """
    pattern, before = marks(protocol), ""
    for name, text in spans:
        if name != "POLICY":
            before = text
            yield name.lower(), text
            continue
        # a protocol may open the code block in the prompt
        opened = protocol.prefill if protocol and before.endswith(protocol.prefill) else ""
        place, before = 0, text
        for found in pattern.finditer(opened + text):
            start, end = (max(0, place - len(opened)) for place in found.span())
            yield "policy", text[place:start]
            yield found.lastgroup, text[start:end]
            place = end
        yield "policy", text[place:]


def headline(record: dict, graded: bool = True) -> str:
    """What an episode was and what it was worth, in a line."""
    parts = [f"step {record['step']}", f"{record['task']} {record['index']}"]
    if graded:
        parts += [verdict(record), f"reward {record['reward']:g}"]
    trained = [a for a, used in zip(record.get("advantages", ()), record.get("trained", ())) if used]
    if trained:
        parts.append(f"advantage {math.fsum(trained) / len(trained):.3g}")
    parts += [f"answer {record['answer']!r}"] if record["answer"] is not None else []
    programs = ", ".join(map(str, record["calls"]))
    return " · ".join(filter(None, [*parts, programs and f"programs {programs}", record["finish"]]))


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
    """The panels of analysis.plot and the loss: {"title", "lines": [{"label", "points": [[step, value]]}]}."""
    panels = []
    for title, metrics in (PANELS | LOSSES).items():
        found = [
            (label, [[m["step"], m[name]] for m in lines if name in m]) for name, label in metrics.items()
        ]
        panels.append({"title": title, "lines": [{"label": k, "points": v} for k, v in found if len(v) > 1]})
    return [panel for panel in panels if panel["lines"]]


def finite(value):
    """The value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(folder: Path, episodes: Episodes, options: dict, protocol: Protocol | None) -> str:
    """The page: analysis/view.html with the run's data in it."""
    chosen = list(islice(found := iter(episodes), PAGE_LIMIT))
    more = sum(1 for _ in found)
    count = episodes.count() + (f"; this page has the first {PAGE_LIMIT}" if more else "")
    groups, graded = {}, options["script"] != "sft"
    for record in chosen:
        place = {name: record[name] for name in ("step", "task", "index")}
        group = groups.setdefault(tuple(place.values()), place | {"episodes": []})
        group["episodes"].append(for_page(record, protocol, graded))
    data = {"run": str(folder), "script": options["script"], "size": options.get("group"), "count": count}
    data |= {"curves": curves(records(folder / "metrics.jsonl")), "groups": list(groups.values())}
    # no text of a model can end the script element
    inside = json.dumps(finite(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text()
    return template.replace("{{title}}", html.escape(folder.name), 1).replace("{{data}}", inside, 1)


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all. Raises UsageError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"--html {path}: {error}; expected a file in a folder to write to") from None


# -- the terminal ----------------------------------------------------------------------------------


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder and in its folders, by name."""
    found = (path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json"))
    return sorted(path for path in found if options_of(path)["script"])


def table(runs: Sequence[Path], now: float) -> str:
    """A row per run: folder, script, steps, last accuracy, age."""
    rows = [("folder", "script", "steps", "accuracy", "age")]
    for folder in runs:
        options, path = options_of(folder), folder / "metrics.jsonl"
        lines = records(path)
        steps = max((m["step"] for m in lines if isinstance(m.get("step"), int)), default=0)
        of = f" of {options['steps']}" if options.get("steps") else ""
        last = [m["accuracy"] for m in lines if isinstance(m.get("accuracy"), float)][-1:]
        seconds = now - (path if path.exists() else folder / "config.json").stat().st_mtime
        units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
        age = next((f"{seconds // size:.0f} {unit}" for size, unit in units if seconds >= size), "0 s")
        rows.append((str(folder), options["script"], f"{steps}{of}", *(f"{a:.3f}" for a in last or ()), age))
        if not last:
            rows[-1] = (*rows[-1][:3], "-", age)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def show(parts: Iterable[str]) -> None:
    """Write the parts as they are made: in a terminal to `less -R`, so that a long file opens at once."""
    if not (sys.stdout.isatty() and shutil.which("less")):
        for part in parts:
            sys.stdout.write(part)
        return
    with subprocess.Popen(["less", "-R"], stdin=subprocess.PIPE, encoding="utf-8", errors="replace") as pager:
        # Ctrl-C is for the pager
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError), pager.stdin:
            for part in parts:
                pager.stdin.write(part)
                pager.stdin.flush()


def view(folder: Path, cfg: Config) -> None:
    """Show the run's selected episodes, or write their page. Raises UsageError where there are none."""
    options = options_of(folder)
    graded = options["script"] != "sft"
    if not graded and (cfg.right or cfg.wrong):
        raise UsageError(
            f"{folder}: a run of sft.py, whose trajectories are not graded; leave out --right, --wrong"
        )
    episodes = Episodes(folder / "episodes.jsonl", cfg)
    protocol = PROTOCOLS.get(options.get("protocol"))
    if cfg.html:
        write_page(Path(cfg.html), page(folder, episodes, options, protocol))
        print(f"{cfg.html}: {episodes.count()}")
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    texts = (as_text(record, protocol, graded=graded, colour=colour) for record in episodes)
    first = next(texts)
    note = [] if graded else [f"{folder}: a run of sft.py, whose trajectories are not graded\n\n"]
    show(chain(note, [first], texts, (f"{episodes.count()}\n" for _ in "1")))


def main() -> None:
    words = sys.argv[1:]
    named = words[: bool(words) and not words[0].startswith("-")]
    cfg = config.parse(Config, __doc__, words[len(named) :])
    folder = Path(*named or ["runs"])
    sys.stdout.reconfigure(errors="replace")
    if cfg.right and cfg.wrong:
        raise UsageError("--right and --wrong: no episode is both; give one of them")
    if cfg.html and Path(cfg.html).suffix != ".html":
        raise UsageError(f"--html {cfg.html}: expected a file name that ends in .html")
    if (folder / "episodes.jsonl").is_file():
        view(folder, cfg)
    elif not (runs := runs_in(folder)):
        raise UsageError(
            f"{folder}: no episodes.jsonl, and no runs in it; expected the folder of a training run"
        )
    elif cfg != Config():
        raise UsageError(f"{folder}: a folder of {len(runs)} runs; name one of them before the options")
    else:
        print(table(runs, time.time()))


if __name__ == "__main__":
    config.run(main)
