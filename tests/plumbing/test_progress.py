"""Bars and colours: for people at a terminal; a file gets a line a minute, and no colours."""

import io
import sys
from pathlib import Path

import pytest

from plumbing import progress as manners
from plumbing.progress import colourful, lines_in, progress


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    "terminal, no_color, expected",
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False), (False, "1", False)],
)
def test_colours(terminal: bool, no_color: str | None, expected: bool, monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert colourful(Stream(terminal)) == expected


@pytest.mark.parametrize("leave", [True, False])
def test_a_file_gets_a_line_a_minute_and_at_the_end(leave: bool, monkeypatch) -> None:
    """150 steps of two seconds on a clock of our own: five minutes."""
    monkeypatch.setattr(sys, "stderr", log := Stream(terminal=False))
    now = [1000.0]
    bar = progress(150, "grpo", leave=leave)
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = now[0]
    for _ in range(150):
        now[0] += 2.0
        bar.update()
        assert bar.miniters == 1  # tqdm's monitor thread draws bars of more again, after ten seconds
    bar.close()
    lines = log.getvalue().splitlines()
    assert lines[0] == "grpo: 30 of 150, 01:00 gone, 04:00 left"
    assert lines[4] == "grpo: 150 of 150, 05:00 gone, 00:00 left"
    assert len(lines) in ((5, 6) if leave else (5,)) and "\r" not in log.getvalue()


def test_a_short_run_says_only_where_it_ended(monkeypatch) -> None:
    for leave, said in ((True, 1), (False, 0)):
        monkeypatch.setattr(sys, "stderr", log := Stream(terminal=False))
        for _ in progress(3, "sft", range(3), leave=leave):
            pass
        assert log.getvalue().count("\n") == said and ("sft: 3 of 3, 00:00 gone" in log.getvalue()) == leave


def test_a_terminal_gets_a_bar(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Stream(terminal=True))
    for _ in manners.progress(3, "sft", range(3), leave=True, file=screen):
        pass
    assert "\rsft:" in screen.getvalue() and "3/3" in screen.getvalue() and "\x1b[3" not in screen.getvalue()


def test_lines_are_counted_in_json_lines_only(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text("{}\n{}\n{}")
    assert [lines_in(tmp_path / name) for name in ("a.jsonl", "a.json", "b.jsonl")] == [3, None, None]
