"""The run folder: checkpoints that survive kills, damage and a full disk, and the word about the sandbox.

bench/kills.py is the long test, of real kills. Each script's own test compares a run that was stopped and
resumed with one that was not.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import lines
from ranks import on_ranks

import model as models
import sft
from isolation.result import LAYERS
from model import TINY, Qwen
from plumbing import folders, shards
from plumbing.config import UsageError
from plumbing.ranks import World
from plumbing.run import Run
from sandbox import LEVELS
from tasks import names as task_names
from training.interpreter import note_sandbox
from training.loading import load_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


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
    sandbox = sandbox_at(level) if level in LEVELS else server(level)
    note_sandbox(run, sandbox)
    run.log(1, {})
    return json.loads((folder / "config.json").read_text())


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


# -- checkpoints -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training(Options):
    keep: int = 2
    dtype: str = "float32"
    model: str = "tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("tiny", World("cpu"), "float32")[1]


SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def learner(seed: int) -> dict:
    """A small model and its optimiser."""
    model = Qwen(replace(TINY, **SHAPE)).init_weights(seed)
    return {"model": (model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True))}


def advance(parts: dict) -> None:
    """An optimiser step; what it does depends on weights and moments."""
    for model, optimizer in parts.values():
        for i, p in enumerate(model.parameters()):
            p.grad = torch.sin(p.detach() * 100 + i)
        optimizer.step()
        optimizer.zero_grad()


def weights(parts: dict) -> dict:
    return {name: p.detach().clone() for name, p in parts["model"][0].named_parameters()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begun(folder: Path, tokenizer, rewards=(0.5, 0.5, 0.5), **options) -> tuple[Run, dict, list[dict]]:
    """A run with a checkpoint after every step; its parts, and the weights after each step."""
    run, parts, after = Run(Training(str(folder), **options), World("cpu")), learner(0), []
    for step, reward in enumerate(rewards, 1):
        advance(parts)
        run.log(step, {"reward": reward})
        run.save(step, parts, tokenizer)
        after.append(weights(parts))
    return run, parts, after


def resumed(folder: Path, parts: dict) -> tuple[Run, int]:
    run = Run(Training(str(folder), resume=True), World("cpu"))
    return run, run.restore(parts)


def names(run: Run) -> list[str]:
    return sorted(p.name for p in (run.folder / "checkpoints").iterdir() if p.name != "lock")


def test_what_goes_on_after_a_checkpoint_is_what_would_have(tmp_path, tokenizer):
    """Another model, restored, takes the very same next steps: moments and step counts are there too."""
    _, parts, _ = begun(tmp_path / "run", tokenizer)
    other = learner(1)
    assert not same(weights(parts), weights(other))
    assert resumed(tmp_path / "run", other)[1] == 3 and same(weights(parts), weights(other))
    for each in (parts, other):
        advance(each)
    assert same(weights(parts), weights(other))


def test_an_optimizer_that_has_not_begun_is_saved_so(tmp_path, tokenizer):
    """As the actor's during PPO's warm-up: a state of zeros with a step counted would be another one."""
    run, parts = Run(Training(str(tmp_path / "run")), World("cpu")), learner(0)
    run.save(1, parts, tokenizer)
    assert not parts["model"][1].state
    other = learner(1)
    resumed(tmp_path / "run", other)
    assert not other["model"][1].state and same(weights(parts), weights(other))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def empty(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {}}))


def vague(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {".metadata": 1}}))


@pytest.mark.parametrize(
    "damage, file, words",
    [
        (cut, "__0_0.distcp", "bytes of"),
        (flip, "__0_0.distcp", "its bytes have changed"),
        (Path.unlink, "__0_0.distcp", "No such file"),
        (flip, "tokenizer.json", "its bytes have changed"),
        (Path.unlink, ".metadata", "No such file"),
        (cut, "manifest.json", "manifest.json"),
        (empty, "manifest.json", "not what a checkpoint's says"),
        (vague, "manifest.json", "not sizes and sums"),
        (Path.unlink, "manifest.json", "No such file"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(
    tmp_path, tokenizer, capsys, damage, file, words
):
    run, _, after = begun(tmp_path / "run", tokenizer)
    damage(run.folder / "checkpoints" / "step-000003" / file)
    parts = learner(1)
    run, done = resumed(run.folder, parts)
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-000003" in line and words in line and done == 2
    assert same(weights(parts), after[1])
    assert [json.loads(x)["step"] for x in (run.folder / "metrics.jsonl").open()] == [1, 2]
    advance(parts)
    run.save(3, parts, tokenizer)
    assert same(weights(parts), after[2])
    assert names(run) == ["step-000002", "step-000003", "step-000003.damaged"]
    assert resumed(run.folder, learner(1))[1] == 3


def test_a_run_goes_on_in_the_dtype_it_began_with(tmp_path, tokenizer):
    """--dtype auto is another one where there is a GPU: final/ would change its dtype without a word."""
    run, _, _ = begun(tmp_path / "run", tokenizer)
    manifest = run.folder / "checkpoints" / "step-000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"', 1))
    with pytest.raises(UsageError, match="computed in bfloat16, not float32; give --dtype bfloat16"):
        resumed(run.folder, learner(1))


def test_what_a_kill_or_a_full_disk_leaves_of_small_files_stops_no_later_start(tmp_path, monkeypatch):
    """A start that was killed inside its first write, and one that found no room to note its data again."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.tmp").write_text("{")
    run = Run(Training(str(folder)), World("cpu"))
    run.remember("data", "abc")
    with monkeypatch.context() as full, pytest.raises(UsageError, match="No space left"):
        full.setattr(
            Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        run.remember("data", "abd")
    assert (folder / "data.txt").read_text() == "abc"


def test_ranks_with_other_data_are_told(tmp_path):
    """A program that was late on one rank would have left a trajectory out there, and only there."""

    def work(world: World) -> str:
        run = Run.__new__(Run)
        run.world, run.folder = world, tmp_path
        with pytest.raises(UsageError) as error:
            run.remember("data", f"digest {world.rank}")
        return str(error.value)

    assert all("data differs between ranks" in line for line in on_ranks(2, work))


def test_the_sandbox_of_the_weakest_rank_is_noted(tmp_path):
    def work(world: World) -> dict:
        run = Run(Training(str(tmp_path / "run")), world)
        sandbox = [sandbox_at("core"), server("http://a"), sandbox_at("none")][world.rank]
        note_sandbox(run, sandbox)
        return run.found["sandbox"]["level"]

    assert on_ranks(3, work) == ["remote http://a"] * 3


def test_a_folder_that_takes_nothing_is_one_line():
    with pytest.raises(UsageError, match="--out /proc/abacus: No such file.*expected a folder to write to"):
        Run(Training("/proc/abacus"), World("cpu"))


def test_without_any_whole_checkpoint_nothing_is_touched(tmp_path, tokenizer):
    run, _, _ = begun(tmp_path / "run", tokenizer, keep=1)
    cut(run.folder / "checkpoints" / "step-000003" / "__0_0.distcp")
    log = (run.folder / "metrics.jsonl").read_text()
    with pytest.raises(UsageError, match="no checkpoint is whole"):
        resumed(run.folder, learner(1))
    assert names(run) == ["step-000003"] and (run.folder / "metrics.jsonl").read_text() == log


def test_the_newest_are_kept(tmp_path, tokenizer):
    run, _, _ = begun(tmp_path / "run", tokenizer, rewards=(0.1, 0.9, 0.2, 0.3, 0.4))
    assert names(run) == ["step-000004", "step-000005"]
    assert json.loads((run.steps()[0] / "manifest.json").read_text())["step"] == 4


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, tokenizer, monkeypatch):
    """At the worst moment: all is written, the name is not there. bench/kills.py kills at any moment."""

    def killed(*_):
        raise KeyboardInterrupt

    run, parts, after = begun(tmp_path / "run", tokenizer)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folders, "exchange", killed)
        run.save(4, parts, tokenizer)
    assert names(run) == [".step-000004.tmp", "step-000002", "step-000003"]
    other = learner(1)
    assert resumed(run.folder, other)[1] == 3 and same(weights(other), after[2])
    assert names(run) == ["step-000002", "step-000003"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, tokenizer):
    """A real one, filled up but for less than a checkpoint takes."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        run, parts, after = begun(tmp_path / "run", tokenizer, rewards=(0.5,))
        (tmp_path / "ballast").write_bytes(bytes(shutil.disk_usage(tmp_path).free - 2**16))
        said = r"checkpoint of step 2 not written: .* \(0.00 GiB free\); make room and go on with --resume"
        with pytest.raises(UsageError, match=said) as error:
            run.save(2, parts, tokenizer)
        assert "\n" not in str(error.value) and names(run) == ["step-000001"]
        other = learner(1)
        assert resumed(run.folder, other)[1] == 1 and same(weights(other), after[0])
        with pytest.raises(UsageError, match="metrics.jsonl: No space left on device; make room"):
            run.log(2, {"long": "x" * 2**17})
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # the lock stays open


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path, tokenizer):
    """Ranks may outlive a launcher that was killed with -9."""
    run, _, _ = begun(tmp_path / "run", tokenizer)
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, str(run.folder / "checkpoints" / "lock")]
    assert b"BlockingIOError" in subprocess.run(command, capture_output=True).stderr
    other = tmp_path / "other" / "checkpoints"
    other.mkdir(parents=True)
    (other / "lock").touch()
    code += "; print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(other / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(UsageError, match="another process still trains in it"):
            Run(Training(str(other.parent)), World("cpu"))
        holder.communicate(b"\n")
    Run(Training(str(other.parent)), World("cpu"))


def test_an_export_is_a_model_folder(tmp_path, tokenizer, monkeypatch):
    """In the dtype that the run computed in, and readable by transformers; the checkpoint itself is none."""
    run, parts, _ = begun(tmp_path / "run", tokenizer, rewards=(0.5,), dtype="bfloat16")
    step, out = run.folder / "checkpoints" / "step-000001", tmp_path / "out"
    with pytest.raises(UsageError, match="plumbing.shards export .*step-000001 OUT"):
        load_model(str(step), World("cpu"), "float32")
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "export", str(step), str(out)])
    shards.main()
    run.finish()
    transformers = pytest.importorskip("transformers", reason="the oracle, not installed")
    expected = {name: p.bfloat16() for name, p in weights(parts).items()}
    for folder in (out, run.folder / "final"):
        assert same(dict(models.load(folder).named_parameters()), expected)
        theirs = dict(
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters()
        )
        assert all(torch.equal(theirs[name], p) for name, p in expected.items())
    cut(step / "__0_0.distcp")
    for command in (["export", str(step), str(tmp_path / "b")], ["check"]):
        monkeypatch.setattr(sys, "argv", ["checkpoint.py", *command])
        with pytest.raises(UsageError, match="bytes of|expected: export"):
            shards.main()


def test_two_ranks_stopped_by_their_launcher_go_on_as_one(tmp_path):
    """SIGTERM to torchrun is a preemption: every rank ends with a checkpoint, though torchrun says 1. What
    two ranks have written one reads, and ends within .01 of the learning rate of one that did it all."""
    tasks = ",".join(task_names("toy", "train")[:5])
    common = ["sft.py", "--tasks", tasks, "--steps", "6", "--batch", "5", "--per-task", "1", "--lr", "1e-3"]
    common += ["--sandbox", "none", "--dtype", "float32", "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    out = tmp_path / "two"
    command = [*launch, "--shutdown-timeout", "120", *common, str(out)]
    run = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=180)
    assert run.returncode == 1 and "stopping: the current step is dropped" in said
    (step,) = shards.steps(out)
    assert int(step.name[5:]) < 6 and (step / "__1_0.distcp").exists() and not (out / "final").exists()
    with pytest.MonkeyPatch.context() as patch:
        for name, more in ((str(out), ["--resume"]), (str(tmp_path / "one"), [])):
            patch.setattr(sys, "argv", [*common, name, *more])
            sft.main()
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    one, two = (models.load(tmp_path / name / "final") for name in ("one", "two"))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert (p - q).abs().max() <= 0.01 * 1e-3
