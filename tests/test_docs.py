"""The pages and --help: every command is one that the scripts take, and what README says of sizes is so."""

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import evaluate
from plumbing import config, shards
from plumbing.ranks import World

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "BENCHMARKS.md",
    *sorted(ROOT.glob("docs/*.md")),
]
MODULES = [
    "sft",
    "grpo",
    "ppo",
    "evaluate",
    "coldstart",
    "chat",
    "demo",
    "training.curriculum",
    "tasks.__main__",
]
MODULES += [f"analysis.{name}" for name in ("plot", "plan", "view", "reproduce")]
NAMES = {"tasks": "tasks.__main__", "mine": "grpo"}  # mine.py: docs/extending.md
SETTING = re.compile(r"(?:[A-Z_]+=\S+ |taskset -c \S+ |\$ |\.venv/bin/)*")
TORCHRUN = re.compile(r"torchrun (?:--\w+ \S+ )*")


class Parsed(BaseException):
    """Raised in place of what a command would do, once its options are understood."""


def commands(text: str) -> Iterator[str]:
    """The command lines of a page: in its blocks without a language or in bash, and in its code spans."""
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def arguments(line: str) -> list[str]:
    """The script or -m module of a command that starts Python, and its words; [] for any other line."""
    line = SETTING.sub("", line.strip(), count=1)
    line = TORCHRUN.sub("python ", line, count=1)
    if not re.match(r"python \S*\.py\b|python -m (?!pytest|pip)[a-z]", line):
        return []
    words = shlex.split(line, comments=True)
    words = list(itertools.takewhile(lambda word: word not in ("<", ">", "|", "&&", ";"), words))
    return words[2:] if words[1] == "-m" else words[1:]


def heads() -> Iterator[tuple[str, str]]:
    """The commands with which each script's --help begins; what explains one stands two blanks behind it."""
    for name in MODULES:
        for line in importlib.import_module(name).__doc__.split("\n\n")[1].splitlines():
            if not line.strip().startswith("or ") and "..." not in line:
                yield name, re.sub(r"(?<=\S) {2,}\S.*", "", line.strip().split(" #")[0])


FOUND = [(page.name, line) for page in PAGES for line in commands(page.read_text())]
FOUND = sorted({(name, line) for name, line in [*FOUND, *heads()] if arguments(line)})


def load(script: str):
    """The module that a command starts."""
    name = script.removesuffix(".py").replace("/", ".")
    if not name.startswith(("bench.", "tests.")):
        return importlib.import_module(NAMES.get(name, name))
    spec = importlib.util.spec_from_file_location(f"page_{name.split('.')[1]}", ROOT / script)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(monkeypatch):
    """parse(words): read a command's options as its script does, and do nothing. Raises UsageError."""

    def stop(function):
        def parse_and_stop(*args, **kwargs):
            raise Parsed(function(*args, **kwargs))

        return parse_and_stop

    def check_compare(paths: list[str]) -> None:
        assert len(paths) > 1 and not any(path.startswith("-") for path in paths)
        raise Parsed(paths)

    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "bench"), str(ROOT / "tests")])
    monkeypatch.setattr(evaluate, "compare", check_compare)
    monkeypatch.setattr(shards, "damages", stop(lambda folder, world: folder))

    def parse(words: list[str]) -> None:
        script, *rest = words
        module, named = load(script), list(itertools.takewhile(lambda word: word[0] != "-", rest))
        if script == "sandbox.py":
            assert rest == named and len(rest) < 2
            return
        if script == "tests/mutants.py":
            assert all(any(word in mutant.name.lower() for mutant in module.MUTANTS) for word in rest)
            return
        monkeypatch.setattr(config, "parse", stop(PARSE))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(PARSE_ARGS))
        monkeypatch.setattr(sys, "argv", [script, *rest])
        with pytest.raises(Parsed) as found:
            module.main()
        (cfg,) = found.value.args
        if script in ("grpo.py", "ppo.py"):
            module.check(cfg)
        if script == "tasks":
            module.run(named, dataclasses.replace(cfg, bbh=None, symbench=None))
        if script == "analysis.reproduce":
            module.chosen(named)

    return parse


PARSE, PARSE_ARGS = config.parse, argparse.ArgumentParser.parse_args


@pytest.mark.parametrize("page, line", FOUND, ids=[f"{page}: {line}" for page, line in FOUND])
def test_a_command_is_understood(page: str, line: str, parse) -> None:
    parse(arguments(line))


def test_commands_are_found_and_a_wrong_one_is_refused(parse) -> None:
    block = "A=1 torchrun --nproc_per_node 2 grpo.py --stpes 3 \\\n    --lr 1  # x\nmake x"
    found = [arguments(line) for line in commands(f"a\n```\n{block}\n```\n`python -c` `python b.py`")]
    assert found == [["grpo.py", "--stpes", "3", "--lr", "1"], [], [], ["b.py"]]
    for words in (found[0], ["grpo.py", "--group", "1"], ["tasks", "shw"], ["analysis.reproduce", "mask"]):
        with pytest.raises(config.UsageError):
            parse(words)
    assert len(FOUND) > 50 and {page.name for page in PAGES} & {name for name, _ in FOUND}


def test_the_script_for_a_gpu_says_its_commands_right(parse, tmp_path: Path) -> None:
    command, env = ["sh", str(ROOT / "bench/gpu.sh"), str(tmp_path)], {**os.environ, "PYTHON": "echo"}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [(tmp_path / f"{line.partition(':')[0]}.txt").read_text() for line in said]
    assert lines[0].split()[:2] == ["-m", "pytest"] and len(lines) == 7
    for line in lines[1:]:
        parse(line.split())


# Commands of the pages that need no network, no GPU and no data -> what their output says.
QUICK = {
    "python -m tasks": "144 tasks, ",
    "python sandbox.py": "seccomp",
    "python -m analysis.plan --published --gpus 8": "R1-CI 7B        70     80",
    "python grpo.py --model tiny --steps 2 --prompts 2 --max-tokens 64 --out runs/try": "try: 2 of 2",
}


@pytest.mark.parametrize("line", QUICK)
def test_a_quick_command_runs(line: str, tmp_path: Path) -> None:
    assert line in {found for _, found in FOUND}, "it stands on no page"
    words = [str(ROOT / word) if word.endswith(".py") else word for word in line.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and QUICK[line] in done.stdout + done.stderr, done.stdout + done.stderr
    page = (ROOT / "docs" / "commands.md").read_text()
    for path in tmp_path.glob("runs/*/metrics.jsonl"):  # the page explains each metric
        names = set().union(*map(json.loads, path.read_text().splitlines())) - {"step"}
        assert names and {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("width", ["80", "100"])
def test_help_is_short_and_begins_with_commands_and_the_command_s_own_options(
    name: str, width: str, monkeypatch, capsys
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as leave:
        module.main()
    lines = capsys.readouterr().out.splitlines()
    assert not leave.value.code and len(lines) <= 130 and max(map(len, lines)) <= max(int(width), 120)
    titles = [i for i, line in enumerate(lines) if re.match(r"\w.*:$", line)]
    first, own = titles[0], lines.index("Own options:") if "Own options:" in lines else titles[0]
    assert sum(line.strip().startswith(("python ", "torchrun ")) for line in lines[:first]) >= 2
    assert lines[first] == "Most used:" and own in titles[:2]
    assert sum(line.startswith("  --") for line in lines[first : titles[1] if titles[1:] else None]) <= 3
    shown = re.findall(r"^  --([\w-]+)", "\n".join(lines), re.MULTILINE)
    known = [field.name.replace("_", "-") for field in dataclasses.fields(module.Config)]
    assert sorted(shown) == sorted(known), "each option once"


# -- the README ------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def test_the_readme_is_short_and_in_order() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120 and lines[2][0].isalpha()
    order = ["docs/demo.png", "make demo", "## What is learnt", "## Read in this order", "## Train a real"]
    order += ["hf download", "--nproc_per_node 8", "## What it is not"]
    places = [README.index(text) for text in order]
    assert places == sorted(places)
    for table in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        assert table.count("\n") - 2 <= (6 if "| lines |" in table else 5)


def test_the_files_to_read_have_about_as_many_lines_as_said() -> None:
    rows = re.findall(r"^\| \[([\w.]+)\]\(\1\) \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) == 6
    for name, said in rows:
        found = len((ROOT / name).read_text().splitlines())
        assert abs(found - int(said)) <= 0.1 * found, f"{name} has {found} lines, README says {said}"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, section in LINK.findall(text):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        if section:
            heads = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}, section


def test_make_and_pip_have_what_the_pages_name() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for page in PAGES:
        for line in commands(page.read_text()):
            if match := re.match(r"make (\w+)", line):
                assert match[1] in targets, f"{page.name}: {line}"
            for named in re.findall(r"pip install '\.\[([\w,]+)\]'", line):
                assert set(named.split(",")) <= extras, f"{page.name}: {line}"


@pytest.mark.parametrize(
    "name, argv, page",
    [
        ("grpo", ["--tasks", "game25"], "docs/tasks.md"),
        ("grpo", ["--reward", "outcomes"], "docs/extending.md"),
        ("grpo", ["--protocol", "rici"], "docs/extending.md"),
        ("sft", ["--preset", "r1"], "docs/papers.md"),
    ],
)
def test_an_error_names_the_page_where_there_is_more(name: str, argv: list[str], page: str, tmp_path) -> None:
    module = importlib.import_module(name)
    with pytest.raises(config.UsageError, match=re.escape(page)) as found:
        cfg = config.parse(module.Config, argv=[*argv, "--out", f"{tmp_path}/run"], presets=module.PRESETS)
        module.train(cfg, World("cpu"))
    assert "\n" not in str(found.value) and (ROOT / page).is_file()
