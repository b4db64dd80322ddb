"""Options: what is typed is what runs, and a mistake is one line that names the nearest right thing."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from plumbing import config
from plumbing.config import UsageError, option
from plumbing.journal import new_file
from plumbing.ranks import World


@dataclass(frozen=True)
class Options:
    steps: int = option(4, "how many")
    lr: float = option(1e-3, "how fast")
    out_dir: str | None = option(None, "where to")
    resume: bool = option(False, "go on")
    share: bool = option(True, "50% by default")


def test_types_and_defaults() -> None:
    assert config.parse(Options, argv=[]) == Options()
    argv = ["--steps", "7", "--lr=2e-4", "--out-dir", "x", "--resume", "--no-share"]
    assert config.parse(Options, argv=argv) == Options(7, 2e-4, "x", True, False)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--stpes", "3"], ["--stpes", "--steps"]),
        (["--out", "x"], ["--out", "--out-dir"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps"], ["--steps"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_is_one_line_naming_what_was_found(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        config.parse(Options, argv=argv)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


PRESETS = {"short": {"steps": 1, "out_dir": "a b"}, "fast": {"lr": 0.5, "share": False}}


def test_a_preset_wins_over_defaults_and_typed_options_over_it() -> None:
    def parse(*argv: str) -> Options:
        return config.parse(Options, argv=list(argv), presets=PRESETS)

    assert parse() == Options()
    assert parse("--preset", "short") == Options(steps=1, out_dir="a b")
    for argv in (["--preset=fast", "--share", "--lr", "1e-3"], ["--share", "--lr", "1e-3", "--preset=fast"]):
        assert parse(*argv) == Options(), "also where a typed value is the default"
    with pytest.raises(UsageError, match="--preset fest; did you mean fast.*short, fast"):
        parse("--preset", "fest")
    with pytest.raises(UsageError, match="did you mean --preset"):
        parse("--pre-set", "fast")
    with pytest.raises(UsageError, match="unknown option --preset"):
        config.parse(Options, argv=["--preset", "fast"])


def test_help_shows_what_a_preset_sets(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        config.parse(Options, argv=["--help"], presets=PRESETS)
    shown = " ".join(capsys.readouterr().out.split())
    assert "short --steps 1 --out-dir 'a b'" in shown and "fast --lr 0.5 --no-share" in shown


def test_help_shows_reasons(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as leave:
        config.parse(Options, "What it does.", argv=["--help"])
    shown = capsys.readouterr().out
    assert leave.value.code == 0
    assert "What it does." in shown and "how fast" in shown and "50% by default" in shown


def test_command_types_back_what_differs() -> None:
    cfg = Options(steps=9, out_dir="a b", resume=True, share=False)
    line = config.command(cfg)
    assert line == "--steps 9 --out-dir 'a b' --resume --no-share"


def test_differences_name_both_values(tmp_path) -> None:
    path = tmp_path / "config.json"
    config.write(Options(), path)
    assert json.loads(path.read_text())["lr"] == 1e-3
    assert config.differences(Options(), path) == []
    found = config.differences(Options(lr=0.5, resume=True), path, ignore=["resume"])
    assert found == ["--lr is 0.5, the run has 0.001"]


def test_run_turns_bad_input_into_one_line_and_code_2(capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise UsageError("no such thing")

    with pytest.raises(SystemExit) as leave:
        config.run(main)
    assert leave.value.code == 2
    assert capsys.readouterr().err.strip().endswith("no such thing")


def test_a_reader_who_leaves_ends_the_script_quietly() -> None:
    """As `script | head -c 5` does; another broken pipe is still an error."""
    script = (
        "from plumbing import config\nconfig.run(lambda: [print('x' * 9999, flush=FLUSH) for _ in '_' * 100])"
    )
    for flush in ("True", "False"):
        process = subprocess.Popen(
            [sys.executable, "-c", script.replace("FLUSH", flush)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(config.__file__).parents[1],
        )
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141

    def main() -> None:
        raise BrokenPipeError("another")

    with pytest.raises(BrokenPipeError, match="another"):
        config.run(main)


@dataclass(frozen=True)
class Ranges:
    steps: int = option(4, "how many", least=1)
    lr: float = option(1e-3, "how fast", above=0)
    top_p: float = option(1.0, "nucleus", above=0, most=1)
    limit: int | None = option(None, "none by default", least=1)


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--steps", "0"], "--steps 0: expected at least 1"),
        (["--lr", "0"], "--lr 0.0: expected above 0"),
        (["--top-p", "1.5"], "--top-p 1.5: expected at most 1"),
        (["--limit", "0"], "--limit 0: expected at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused(argv: list[str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        config.parse(Ranges, argv=argv)
    assert str(error.value) == line
    assert config.parse(Ranges, argv=["--top-p", "1"]).limit is None


def test_new_file_is_new_and_its_folder_there(tmp_path) -> None:
    new_file(None, "--out")
    new_file(str(tmp_path / "a" / "b.json"), "--out")
    assert (tmp_path / "a").is_dir()
    (tmp_path / "file").write_text("x")
    assert os.listdir(tmp_path / "a") == []  # looking leaves nothing behind
    (tmp_path / "dangling").symlink_to(tmp_path / "no" / "such" / "folder")
    refused = ("file", "file/below.json", "dangling", "x" * 300, "folder/")
    for path in (f"{tmp_path}/{name}" for name in refused):
        with pytest.raises(UsageError, match="--out"):
            new_file(path, "--out")


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UsageError, match="--device gpu; expected cpu"):
        World("gpu")
