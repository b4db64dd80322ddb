"""The viewer: what it reads, selects and shows, against records and pages written by hand."""

import dataclasses
import importlib
import json
import os
import pty
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from fakes import STOP, Pieces, problem, result

from analysis import view
from analysis.transcripts import SCRIPTS, Episodes, Filter
from episode import Call, Episode
from plumbing.config import UsageError
from tasks import PROTOCOLS
from tokenizer import Source
from training.steps import Step

ROOT = Path(__file__).parents[2]
ODD = '</script><!-- <script> &lt; \u2028 \x1b[2J \x00 {{title}} \\ " \ud7ff \U0001f600'


def record(**changes) -> dict:
    """A line of episodes.jsonl, as runs wrote it before tokens had numbers."""
    spans = [["PROMPT", "1 + 1?"], ["POLICY", "<<<2>>>"]]
    base = {"step": 1, "task": "toy_a", "index": 7, "spans": spans, "tokens": [5, 6], "source": [0, 1]}
    base |= {"answer": "2", "correct": True, "reward": 1.0, "calls": [], "finish": "stop"}
    return base | changes


def folder(path: Path, records: list, **options) -> Path:
    """A run folder with these episodes; a string is a line as it stands."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"protocol": "r1ci", "advantage": "group"} | options))
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (path / "episodes.jsonl").write_text("".join(line + "\n" for line in lines))
    return path


def run(*words, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["view.py", *map(str, words)])
    view.main()


class Page(HTMLParser):
    """The texts of a page by the tag before them, the addresses it would load, and the run's data in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.opened, self.texts, self.addresses = [("", None)], {}, []
        self.feed(path.read_text())
        self.data = json.loads(self.texts["script", "data"])

    def handle_starttag(self, tag: str, attributes: list) -> None:
        attributes = dict(attributes)
        self.opened.append((tag, attributes.get("id")))
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data: str) -> None:
        place = self.opened[-1]
        self.texts[place] = self.texts.get(place, "") + data


# -- what is logged of each token ------------------------------------------------------------------


def test_the_page_has_the_numbers_and_the_text_of_each_token(tmp_path: Path, monkeypatch) -> None:
    """From tensors to the page, through the log. A smiley of two tokens belongs to the second one."""
    tokenizer, smile = Pieces(), "\U0001f600".encode()
    half = [tokenizer.id(smile[:2]), tokenizer.id(smile[2:])]
    code = tokenizer.ids("Say", ":\n", "```python", "\nprint(1)", "\n```")
    parts = [(Source.PROMPT, tokenizer.ids("q", ODD)), (Source.POLICY, code)]
    parts += [
        (Source.TOOL, tokenizer.ids("\n1", "\n")),
        (Source.POLICY, [*half, *tokenizer.ids("<<<", "1>>>")]),
    ]
    parts[-1][1].append(STOP)
    episode = Episode(problem(), 0, reward=float("nan"), finish="stop", answer=ODD)
    for source, ids in parts:
        episode.append(ids, source)
    episode.calls.append(Call("print(1)", result("1"), 4))
    size = len(episode.tokens)
    values = torch.linspace(-3, 3, 2 * (size + 3)).reshape(2, size + 3)
    mask = torch.tensor(episode.source + [0] * 3) == Source.POLICY
    per_token = {
        "logprobs": values,
        "entropy": -values,
        "advantages": values * 2,
        "trained": mask.expand(2, -1),
    }
    (logged,) = Step(0, logged=[episode], per_token=per_token).transcripts(tokenizer)
    where = folder(tmp_path / "<b>{{data}}", [{"step": 1} | logged])
    (where / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": NaN}\n{"st')
    run(where, "--html", tmp_path / "a.html", monkeypatch=monkeypatch)

    page = Page(tmp_path / "a.html")
    assert page.addresses == ["data:,"] and page.texts["title", None] == "<b>{{data}}\n"
    assert [tag for tag, _ in page.opened].count("script") == 2  # the data and the page's own
    (curve,) = page.data["curves"]
    assert curve["lines"] == [{"label": "mean reward", "points": [[1, 0.5], [2, None]]}]
    (shown,) = page.data["groups"][0]["episodes"]
    assert shown["segments"] == [
        ["prompt", ["q", ODD]],
        ["policy", ["Say", ":\n"]],
        ["code", ["```python", "\nprint(1)", "\n```"]],
        ["tool", ["\n1", "\n"]],
        ["policy", ["", "\U0001f600"]],
        ["answer", ["<<<", "1>>>"]],
        ["policy", ["<stop>"]],
    ]
    assert shown["tokens"] == episode.tokens and shown["source"] == episode.source
    for name, factor in (("logprobs", 1), ("entropy", -1), ("advantages", 2)):
        assert shown[name] == pytest.approx((values[0, :size] * factor).tolist(), abs=6e-5)
    assert shown["trained"] == [int(s == Source.POLICY) for s in episode.source]
    assert (shown["answer"], shown["reward"], shown["verdict"]) == (ODD, None, "not graded")
    assert "\x1b" not in view.as_text({"step": 1} | logged, None, graded=True, colour=False)


def test_a_group_is_together_and_the_page_is_not_endless(tmp_path: Path, monkeypatch, capsys) -> None:
    rewards = [[1.0, 0.0, 0.5, 0.0]] * 51
    made = [record(index=i, step=i, reward=r) for i, group in enumerate(rewards) for r in group]
    where = folder(tmp_path / "run", made, group=4)
    run(where, "--html", tmp_path / "a.html", monkeypatch=monkeypatch)
    groups = Page(tmp_path / "a.html").data["groups"]
    assert [[e["reward"] for e in group["episodes"]] for group in groups] == rewards[:50]
    assert "the first 200 episodes" in capsys.readouterr().out
    run(where, "--html", tmp_path / "a.html", "--step", 50, monkeypatch=monkeypatch)
    assert len(Page(tmp_path / "a.html").data["groups"]) == 1
    assert "4 of 204 episodes" in capsys.readouterr().out


# -- what is read and selected ---------------------------------------------------------------------


def test_filters_select_what_they_say(tmp_path: Path, monkeypatch, capsys) -> None:
    """Words in a model's text that look like a log's are no such thing."""
    fake = '"correct": false, "step": 2, "task": "toy_b", "calls": ["error"]'
    made = [
        record(index=0, spans=[["POLICY", fake]]),
        record(index=1, step=2, correct=False),
        record(index=2, step=22, task="toy_ab", calls=["ok", "ok"]),
        record(index=3, task="toy_b", calls=["ok", "timeout"], spans=[["TOOL", "na\u00efve \\n"]]),
        record(index=4, reward=float("nan"), correct=False, calls=["sandbox_error"]),
    ]
    wanted = {
        (): [0, 1, 2, 3, 4],
        ("--task", "toy_b"): [3],
        ("--task", "toy_a"): [0, 1, 4],
        ("--step", "2"): [1],
        ("--right",): [0, 2, 3],
        ("--wrong",): [1],
        ("--error",): [3, 4],
        ("--search", "\u00efve \\n"): [3],
        ("--search", '"step": 2,'): [0],
        ("--right", "--error", "--task", "toy_b"): [3],
    }
    where = folder(tmp_path / "run", made)
    for words, numbers in wanted.items():
        run(where, *words, monkeypatch=monkeypatch)
        out = capsys.readouterr().out
        heads = [line.split(" · ")[1] for line in out.splitlines() if line.startswith("step ")]
        assert [int(head.split()[-1]) for head in heads] == numbers, words
        assert out.endswith(f"{len(numbers)} of 5 episodes\n")


def test_a_long_file_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    where = folder(tmp_path / "run", [record(index=i) for i in range(1000)])
    episodes = Episodes(where / "episodes.jsonl", Filter())
    assert next(iter(episodes))["index"] == 0
    assert episodes.total == 1


WRONG = [
    "{",
    "[1]",
    "\udcff",
    "[" * 100_000,
    record(step="1"),
    record(spans=[["MODEL", "x"]]),
    record(spans=[["POLICY"]]),
    record(reward=None),
    record(source=[0]),
    record(trained=[1, "x"]),
    record(spans=[[[], "x"]]),
    record(characters=[6, 6]),
    record(characters=[6.0, 7.0]),
    record(characters=[-1, 14]),
    {k: v for k, v in record().items() if k != "calls"},
]


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, monkeypatch, capsys) -> None:
    where = folder(tmp_path / "run", [])
    lines = [w if isinstance(w, str) else json.dumps(w) for w in [record(), *WRONG]]
    (where / "episodes.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    run(where, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.endswith(
        f"1 of {len(WRONG) + 1} episodes; {len(WRONG)} damaged lines left out\n"
    )


@pytest.mark.parametrize(
    "records, words, said",
    [
        ([], [], "no episode in its 0 lines"),
        (["{", "}"], [], "no episode in its 2 lines"),
        (["[]"], ["--task", "toy_a"], "selected"),
        ([record()], ["--task", "toy_aa"], "did you mean toy_a"),
        ([record()], ["--step", "3"], "it has steps 1; tasks toy_a"),
        ([record()], ["--right", "--wrong"], "no episode is both"),
        ([record()], ["--html", "a.jsonl"], "ends in .html"),
        ([record()], ["--html", "/nowhere/a.html"], "--html /nowhere/a.html"),
        ([record()], ["--tasks", "toy_a"], "did you mean --task"),
        ([record()], ["--wrong", "toy_a"], "unexpected word toy_a"),
    ],
)
def test_what_cannot_be_shown_is_one_line(records, words, said, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageError, match=said) as error:
        run(folder(tmp_path / "run", records), *words, monkeypatch=monkeypatch)
    assert "\n" not in str(error.value)


# -- one episode -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol, spans, wanted",
    [
        ("r1ci", ["a ```python\nx\n``` b"], ["a ", "CODE```python\nx\n```", " b"]),
        ("r1ci", ["```python\n<<<1>>>"], ["CODE```python\n<<<1>>>"]),
        ("r1ci", ["<<<1 <<<2>>>"], ["<<<1 ", "ANSWER<<<2>>>"]),
        ("r1ci", ["<<<1>>> or <<<2>>>"], ["ANSWER<<<1>>>", " or ", "ANSWER<<<2>>>"]),
        ("retool", ["<code>\nx\n</code>"], ["CODE<code>\nx\n</code>"]),
        ("retool", ["<answer>\n\\boxed{{1}}\n</answer>."], ["ANSWER<answer>\n\\boxed{{1}}\n</answer>", "."]),
        ("text", ["```python\nx\n```"], ["```python\nx\n```"]),
        ("tir", ["```python\nx\n```", "\\boxed{1}."], ["CODE```python\nx\n```", "ANSWER\\boxed{1}", "."]),
        ("of another version", ["<<<1>>>"], ["<<<1>>>"]),
    ],
)
def test_code_and_answers_are_set_off(protocol: str, spans: list, wanted: list) -> None:
    """The parts of what the model wrote."""
    shape = PROTOCOLS.get(protocol)
    turns = [["PROMPT", "q"]]
    for text in spans:
        turns += [["POLICY", text], ["TOOL", "1"]]
    found = [(kind, text) for kind, text in view.segments(turns, shape) if text]
    assert "".join(text for _, text in found) == "".join(text for _, text in turns)
    written = [(kind, text) for kind, text in found if kind not in ("prompt", "tool")]
    assert [("" if kind == "policy" else kind.upper()) + text for kind, text in written] == wanted


def test_trajectories_of_sft_are_not_called_wrong(tmp_path: Path, monkeypatch, capsys) -> None:
    where = folder(tmp_path / "run", [record(correct=False, reward=0.0, answer=None)])
    (where / "config.json").write_text('{"per_task": 2, "protocol": []}')
    run(where, monkeypatch=monkeypatch)
    assert "wrong" not in capsys.readouterr().out
    run(where, "--html", tmp_path / "a.html", monkeypatch=monkeypatch)
    assert "verdict" not in Page(tmp_path / "a.html").data["groups"][0]["episodes"][0]
    with pytest.raises(UsageError, match="not graded"):
        run(where, "--wrong", monkeypatch=monkeypatch)


@pytest.mark.parametrize("no_colour, pager", [("", 'cat > "$SEEN"'), ("1", 'cat > "$SEEN"'), ("", "exit 0")])
def test_a_terminal_gets_a_pager(no_colour: str, pager: str, tmp_path: Path) -> None:
    """The last pager leaves at once, as with q: more was to be written than a pipe holds."""
    where = folder(tmp_path / "run", [record(index=i) for i in range(2000)])
    (tmp_path / "less").write_text(f"#!/bin/sh\n{pager}\n")
    (tmp_path / "less").chmod(0o755)
    seen = tmp_path / "seen"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NO_COLOR": no_colour, "SEEN": str(seen)}
    ours, theirs = pty.openpty()
    ended = subprocess.run([sys.executable, "-m", "analysis.view", where], stdout=theirs, env=env, cwd=ROOT)
    os.close(ours), os.close(theirs)
    assert ended.returncode == 0
    if pager != "exit 0":
        assert seen.read_text().endswith("2000 of 2000 episodes\n")
        assert ("\x1b[1;32m<<<2>>>" in seen.read_text()) == (not no_colour)


# -- the runs --------------------------------------------------------------------------------------


def test_runs_are_listed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    one = folder(tmp_path / "runs" / "demo" / "grpo", [record()], steps=40)
    (one / "metrics.jsonl").write_text('{"step": 8, "accuracy": 0.25}\n{"step": 9, "loss": 1.0}\n{"step"')
    os.utime(one / "metrics.jsonl", (1e9, 1e9))
    folder(tmp_path / "runs" / "new", [], per_task=2, advantage=None)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.json").write_text("{")
    rows = [line.split() for line in view.table(view.runs_in(Path("runs")), 1e9 + 7300).splitlines()]
    assert rows[1] == ["runs/demo/grpo", "grpo", "9", "of", "40", "0.250", "2", "h"]
    assert rows[2][:4] == ["runs/new", "sft", "0", "-"] and len(rows) == 3
    run(monkeypatch=monkeypatch)
    assert "runs/demo/grpo" in capsys.readouterr().out
    refused = ("runs --wrong", "name one"), ("nowhere", "no such folder"), ("runs/damaged", "no runs in it")
    for words, said in refused:
        with pytest.raises(UsageError, match=said):
            run(*words.split(), monkeypatch=monkeypatch)


def test_a_script_is_known_by_an_option_of_its_own() -> None:
    for key, name in SCRIPTS.items():
        having = [s for s in SCRIPTS.values() if key in fields(s)]
        assert having == [name]


def fields(script: str) -> set[str]:
    return {field.name for field in dataclasses.fields(importlib.import_module(script).Config)}
