"""A command's options: one frozen dataclass <-> the command line <-> the run's config.json.

    @dataclass(frozen=True)
    class RunOptions:
        "Run folder"
        steps: int = option(40, "optimiser steps; the demo's reward is flat after 40")

    @dataclass(frozen=True)
    class Config(RunOptions):              # groups are base classes; --help prints a section for each
        lr: float = option(1e-6, "learning rate (both papers)", above=0)

    cfg = parse(Config, __doc__)           # --steps 12, --help; an unknown option names the nearest real one
    cfg = parse(Config, __doc__, presets={"fast": {"steps": 4}})      # and --preset fast; typed options win
    cfg = parse(Config, __doc__, first=("lr", "steps"))               # what --help shows on top

Bad input raises UsageError. `run` prints it as one line and leaves with exit code 2.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import select
import shlex
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

METAVARS = {int: "N", float: "X", str: "TEXT", bool: ""}


class UsageError(Exception):
    """Bad input: one line saying what was found, what was expected, and what to do."""


def option(default, help: str, least=None, above=None, most=None):
    """A field of an options dataclass. --help shows `help`, the reason for the default. A number must be at
    least `least`, more than `above`, at most `most`."""
    limits = {"at least": least, "above": above, "at most": most}
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits})


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the most similar known word, or ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class _Parser(argparse.ArgumentParser):
    help: Callable[[], str]

    def format_help(self) -> str:
        return self.help()

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see --help)")


def _scalar(annotation) -> type:
    """The type that an option's text is converted to: int for `int | None`."""
    if isinstance(annotation, types.UnionType):
        return next(t for t in typing.get_args(annotation) if t is not types.NoneType)
    return annotation


def _groups(cls) -> dict[type, list[dataclasses.Field]]:
    """The fields of each class that `cls` is combined from, its own first. A field that a subclass gives
    another default stays with the class that introduced it."""
    order = [c for c in cls.__mro__ if dataclasses.is_dataclass(c)]
    found: dict[type, list[dataclasses.Field]] = {c: [] for c in order}
    for field in dataclasses.fields(cls):
        home = [c for c in order if field.name in c.__dict__.get("__annotations__", {})][-1]
        found[home].append(field)
    return {c: fields for c, fields in found.items() if fields}


def _add_options(parser: argparse.ArgumentParser, cls) -> list[str]:
    """Add the options of `cls` to the parser; their flags."""
    flags = []
    for field in dataclasses.fields(cls):
        flags.append(_flag(field.name))
        kind = _scalar(field.type)
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(flags[-1], **how)
    return flags


def _sections(cls, first: Sequence[str]) -> dict[str, list[dataclasses.Field]]:
    """The sections of --help by title: the options `first`, by default three of the command's own; the others
    of its own; one section per group."""
    fields, groups = {field.name: field for field in dataclasses.fields(cls)}, _groups(cls)
    first = first or [field.name for field in next(iter(groups.values()))[:3]]
    sections = {"Most used": [fields[name] for name in first]}
    for group, members in groups.items():
        about = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
        title = "Own options" if group is cls else about
        sections[title] = [field for field in members if field.name not in first]
    return {title: members for title, members in sections.items() if members}


def _row(field: dataclasses.Field) -> tuple[str, str]:
    """An option as --help shows it: ('--steps N', 'optimiser steps [40]')."""
    kind, default = _scalar(field.type), field.default
    shown = {"": "none"}.get(default, f"{default:g}" if isinstance(default, float) else default)
    silent = default is None or default is False
    usage = f"{_flag(field.name)} {METAVARS[kind]}".rstrip()
    return usage, field.metadata["help"] + ("" if silent else f" [{'on' if default is True else shown}]")


def _help(cls, description: str, presets: dict[str, dict], first: Sequence[str]) -> str:
    """What --help prints, as wide as the terminal: the first two paragraphs of the description, which are a
    sentence and the commands; the options; what the presets set."""
    paragraphs = description.strip("\n").split("\n\n")
    head = getattr(sys.modules.get(cls.__module__), "__file__", None)
    more = f" {os.path.relpath(head, Path(__file__).parents[1])} begins with more." if head else ""
    about = f"Defaults are in brackets; --no-NAME turns off an option without a value.{more}"
    lines = ["\n\n".join(paragraphs[:2]), "", about]
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    rows = {title: list(map(_row, members)) for title, members in _sections(cls, first).items()}
    if presets:
        sets = [(name, " ".join(map(_typed, v, v.values()))) for name, v in presets.items()]
        rows["--preset NAME, a paper's settings for the options not given; docs/papers.md"] = sets
    for title, members in rows.items():
        lines += ["", f"{title}:"]
        column = max(len(usage) for usage, _ in members) + 4
        for usage, reason in members:
            text = f"  {usage:{column - 3}} {reason}"
            lines += textwrap.wrap(text, width, subsequent_indent=" " * column, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def parse(
    cls,
    description: str = "",
    argv: list[str] | None = None,
    presets: dict[str, dict] | None = None,
    first: Sequence[str] = (),
):
    """An instance of the dataclass `cls` from the command line. Raises UsageError.

    `presets` maps the names that --preset takes to the values of some options. A typed option wins over the
    preset, and the preset over the default. --help shows the options `first` on top.
    """
    parser = _Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS)  # only what is typed is a result
    parser.help = lambda: _help(cls, description, presets or {}, first)
    flags = _add_options(parser, cls)
    if presets:
        flags.append("--preset")
        parser.add_argument("--preset")
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        word = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
        if not word.startswith("-"):
            raise UsageError(f"unexpected word {word}; expected options, --name value (see --help)")
        raise UsageError(f"unknown option {word}{nearest(word, flags)} (see --help)")
    typed = vars(values)
    preset = typed.pop("preset", None) if presets else None
    if preset is not None and preset not in presets:
        raise UsageError(
            f"--preset {preset}{nearest(preset, presets)}; known are {', '.join(presets)} (docs/papers.md)"
        )
    return check(cls(**(presets[preset] if preset else {}) | typed))


def one_of(flag: str, value: str, known: Iterable[str]) -> None:
    """Raises UsageError, naming the nearest known value, where `value` is none of them."""
    if value not in (known := list(known)):
        raise UsageError(f"{flag} {value}{nearest(value, known)}; expected {', '.join(known)}")


def check(cfg):
    """cfg itself, if every number lies in its option's range. Raises UsageError."""
    for field in dataclasses.fields(cfg):
        value, limits = getattr(cfg, field.name), field.metadata["limits"]
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{_flag(field.name)} {value}: expected a finite number")
        for words, limit in limits.items():
            if limit is None or value is None:
                continue
            good = {"at least": value >= limit, "above": value > limit, "at most": value <= limit}
            if not good[words]:
                raise UsageError(f"{_flag(field.name)} {value}: expected {words} {limit}")
    return cfg


def read_text(path: str | None, flag: str) -> str | None:
    """The text of the file that an option names, without its last line end; None for None."""
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {path}: {error}; expected a readable text file") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _typed(name: str, value) -> str:
    """An option as one would type it: '--lr 0.1', '--resume', '--no-resume'."""
    if isinstance(value, bool):
        return _flag(name) if value else f"--no-{_flag(name)[2:]}"
    return f"{_flag(name)} {shlex.quote(str(value))}"


def command(cfg) -> str:
    """The options that differ from their defaults, as one would type them: '--steps 40 --seed 1'."""
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    defaults = {f.name: f.default for f in dataclasses.fields(cfg)}
    return " ".join(_typed(name, value) for name, value in values.items() if value != defaults[name])


def to_json(cfg) -> dict:
    """The options as a plain dictionary."""
    return dataclasses.asdict(cfg)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole: a kill leaves the old one, or none."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write(cfg, path: Path, found: dict | None = None) -> None:
    """Write config.json: the options, and under "found" what the run met on this machine."""
    more = {"found": found} if found else {}
    write_text(path, json.dumps(to_json(cfg) | more, indent=2) + "\n")


def read_found(path: Path) -> dict:
    """What an earlier start of the run met, from its config.json."""
    return json.loads(path.read_text()).get("found", {})


def differences(cfg, path: Path, ignore: Iterable[str] = ()) -> list[str]:
    """How cfg differs from the config.json at `path`: ['lr is 0.1, the run has 0.2'], without `ignore`."""
    try:
        old, new = json.loads(path.read_text()), to_json(cfg)
    except ValueError as error:
        raise UsageError(f"{path}: not a run's configuration ({error}); expected JSON") from None
    keys = sorted((old.keys() | new.keys()) - {"found", *ignore})
    keys = [k for k in keys if old.get(k) != new.get(k)]
    return [f"{_flag(k)} is {new.get(k)}, the run has {old.get(k)}" for k in keys]


def run(main: Callable[[], None], name: str | None = None) -> None:
    """Call a script's main. Bad input is one line on stderr and exit code 2, Ctrl-C code 130; code 141 where
    the reader of stdout has left (`| head`). The line begins with `name`, by default the script's."""
    name = name or Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        stdout = select.poll()
        stdout.register(sys.stdout.fileno(), 0)
        if not stdout.poll(0):  # its reader is there: it was another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        sys.exit(141)
