"""The run folder's word about the sandbox; what else it promises is tested with the scripts that use it."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import grpo
import ppo
import sft
from checkpoint import Run
from config import UsageError
from distributed import World
from sandbox import LAYERS, LEVELS


@dataclass(frozen=True)
class Options:
    out: str
    resume: bool = False


def sandbox_at(level: str) -> SimpleNamespace:
    """What a Sandbox says of itself at a level."""
    layers = {k: "on" if k in LEVELS[level] else "off: not in this kernel" for k in LAYERS}
    return SimpleNamespace(level=level, layers=layers)


def server(url: str) -> SimpleNamespace:
    """What a RemoteSandbox says of itself."""
    return SimpleNamespace(level=f"remote {url}", layers={"remote": url})


def start(folder, level: str) -> dict:
    """Start or resume a run with a sandbox of this level; its config.json."""
    begun = folder.exists()
    run = Run(Options(str(folder), resume=begun), World("cpu"))
    run.note_sandbox(sandbox_at(level) if level in LEVELS else server(level))
    run.log(1, {})
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("script", [sft, grpo, ppo])
def test_weights_of_fewer_digits_are_said_to_lose_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture, script
) -> None:
    """Before anything is trained: the run ends at its folder, which is a file."""
    (tmp_path / "run").write_text("")
    for dtype in ("bfloat16", "float32"):
        with pytest.raises(UsageError, match="in the way"):
            script.train(script.Config(out=str(tmp_path / "run"), dtype=dtype), World("cpu"))
        said = "weights are bfloat16 without float32 masters" in capsys.readouterr().err
        assert said == (dtype == "bfloat16")


def test_the_level_of_the_sandbox_is_in_the_configuration(tmp_path):
    found = start(tmp_path / "run", "core")
    assert found.pop("found")["sandbox"] == {
        "level": "core",
        "layers": {"namespaces": "off: not in this kernel"} | dict.fromkeys(LAYERS[1:], "on"),
    }
    assert found == {"out": str(tmp_path / "run"), "resume": False}


@pytest.mark.parametrize("began, resumed", [("full", "full"), ("core", "full"), ("none", "core")])
def test_a_run_goes_on_at_the_same_level_or_a_stronger_one(tmp_path, began, resumed):
    """And what it says is the weakest that it ever had."""
    start(tmp_path / "run", began)
    assert start(tmp_path / "run", resumed)["found"]["sandbox"]["level"] == began
    assert start(tmp_path / "run", began)["found"]["sandbox"]["level"] == began


def test_a_server_is_weaker_than_any_level_and_may_move(tmp_path):
    start(tmp_path / "own", "core")
    with pytest.raises(UsageError, match="level remote http://a here, but .* landlock is unknown there"):
        start(tmp_path / "own", "http://a")
    began = start(tmp_path / "run", "http://a")["found"]["sandbox"]
    assert began == {"level": "remote http://a", "layers": {"remote": "http://a"}}
    for then in ("http://b", "full"):
        assert start(tmp_path / "run", then)["found"]["sandbox"] == began


@pytest.mark.parametrize("began, resumed", [("full", "core"), ("core", "none"), ("full", "none")])
def test_a_run_does_not_go_on_at_a_weaker_level_unless_told_so(tmp_path, began, resumed):
    folder = tmp_path / "run"
    start(folder, began)
    with pytest.raises(
        UsageError, match=f"reaches level {resumed} here, but the run began at level {began}"
    ) as e:
        start(folder, resumed)
    assert "\n" not in str(e.value)
    assert start(folder, began)["found"]["sandbox"]["level"] == began  # the refusal has changed nothing
    record = json.loads((folder / "config.json").read_text())
    del record["found"]  # as the message says
    (folder / "config.json").write_text(json.dumps(record))
    assert start(folder, resumed)["found"]["sandbox"]["level"] == resumed
