"""A script's options: one frozen dataclass <-> the command line <-> the run's config.json.

    @dataclass(frozen=True)
    class Config:
        steps: int = option(40, "optimiser steps; the demo's reward is flat after 40")

    cfg = parse(Config, __doc__)          # --steps 12, --help; an unknown option names the nearest real one
    cfg = parse(Config, __doc__, presets={"fast": {"steps": 4}})      # and --preset fast; other options win

Everything a user can get wrong raises UsageError, which `run` prints as one line before leaving with code 2.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import select
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path


class UsageError(Exception):
    """Bad input: one line saying what was found, what was expected, and what to do."""


def option(default, help: str, least=None, above=None, most=None):
    """A field of a script's Config with its reason beside it, shown by --help; a number must be at least
    `least`, more than `above`, at most `most`."""
    limits = {"at least": least, "above": above, "at most": most}
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits})


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the most similar known word, or ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see --help)")


def _scalar(annotation) -> type:
    """int from `int | None`, and so on: the type that the text of an option is converted to."""
    if isinstance(annotation, types.UnionType):
        return next(t for t in typing.get_args(annotation) if t is not types.NoneType)
    return annotation


def parse(cls, description: str = "", argv: list[str] | None = None, presets: dict[str, dict] | None = None):
    """An instance of the dataclass `cls` from the command line. Raises UsageError.

    `presets` maps the names that --preset takes to the values of some options. An option that is typed wins
    over the preset, wherever it stands; the preset wins over the default.
    """
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # what is not typed is not in the result
    )
    flags = []
    if presets:
        flags.append("--preset")
        shown = "; ".join(f"{name}: {' '.join(map(_typed, v, v.values()))}" for name, v in presets.items())
        parser.add_argument(
            "--preset", metavar="NAME", help=f"a paper's settings, for the options not given: {shown}"
        )
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        flags.append(flag)
        kind = _scalar(field.type)
        help = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, help=help)
        else:
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=help)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        word = next((u for u in unknown if u.startswith("-")), unknown[0]).split("=")[0]
        raise UsageError(f"unknown option {word}{nearest(word, flags)} (see --help)")
    typed = vars(values)
    preset = typed.pop("preset", None) if presets else None
    if preset is not None and preset not in presets:
        raise UsageError(f"--preset {preset}{nearest(preset, presets)}; known are {', '.join(presets)}")
    return check(cls(**(presets[preset] if preset else {}) | typed))


def check(cfg):
    """cfg itself, if every number lies in its option's range. Raises UsageError."""
    for field in dataclasses.fields(cfg):
        value, limits = getattr(cfg, field.name), field.metadata["limits"]
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{field.name.replace('_', '-')} {value}: expected a finite number")
        for words, limit in limits.items():
            if limit is None or value is None:
                continue
            good = {"at least": value >= limit, "above": value > limit, "at most": value <= limit}
            if not good[words]:
                raise UsageError(f"--{field.name.replace('_', '-')} {value}: expected {words} {limit}")
    return cfg


def read_text(path: str | None, flag: str) -> str | None:
    """The text of the file that an option names, without its last line end; None for None."""
    if path is None:
        return None
    try:
        return Path(path).read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {path}: {error}; expected a readable text file") from None


def _typed(name: str, value) -> str:
    """An option as one would type it: '--lr 0.1', '--resume', '--no-resume'."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {shlex.quote(str(value))}"


def command(cfg) -> str:
    """The options that differ from their defaults, as one would type them: '--steps 40 --seed 1'."""
    words = []
    for field in dataclasses.fields(cfg):
        if (value := getattr(cfg, field.name)) != field.default:
            words.append(_typed(field.name, value))
    return " ".join(words)


def to_json(cfg) -> dict:
    """The options as a plain dictionary."""
    return dataclasses.asdict(cfg)


def write(cfg, path: Path, found: dict | None = None) -> None:
    """Write config.json: the options, and under "found" what the run met, which is no option."""
    temporary = path.with_name(f".{path.name}.tmp")  # a kill must not leave half of it
    more = {"found": found} if found else {}
    temporary.write_text(json.dumps(to_json(cfg) | more, indent=2) + "\n")
    temporary.replace(path)


def read_found(path: Path) -> dict:
    """What an earlier start of the run met, from its config.json."""
    return json.loads(path.read_text()).get("found", {})


def new_file(path: str | None, flag: str) -> None:
    """Make sure, before any work, that an option's file can be written: it is new, and its folder, made where
    it is missing, takes it."""
    if path is None:
        return
    try:
        if Path(path).exists():
            raise UsageError(f"{flag} {path} exists; expected a new file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path, "x").close()  # the one sure way to know
        Path(path).unlink()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error}; expected a new file that can be written") from None


def differences(cfg, path: Path, ignore: Iterable[str] = ()) -> list[str]:
    """How cfg differs from the config.json at `path`: ['lr is 0.1, the run has 0.2'], without `ignore`."""
    try:
        old, new = json.loads(path.read_text()), to_json(cfg)
    except ValueError as error:
        raise UsageError(f"{path}: not a run's configuration ({error}); expected JSON") from None
    keys = sorted((old.keys() | new.keys()) - {"found", *ignore})
    keys = [k for k in keys if old.get(k) != new.get(k)]
    return [f"--{k.replace('_', '-')} is {new.get(k)}, the run has {old.get(k)}" for k in keys]


def run(main: Callable[[], None], name: str | None = None) -> None:
    """Call a script's main; bad input becomes one line on stderr and exit code 2, Ctrl-C code 130. Where the
    reader of stdout has left (`| head`) it ends without a word, code 141. `name` is what the line begins
    with, by default the script's."""
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
