"""Questions shared over ranks: the answers of one rank, each question once, also after a kill. Memory.

Oracle: one rank, and the memory of a cache by hand.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import on_processes

import coldstart
import evaluate
import tasks.math
from episode import Episode, Finish
from model import Config, Qwen
from plumbing.config import UsageError
from plumbing.journal import parts
from plumbing.ranks import World
from sandbox import Sandbox
from tasks import get, names
from tokenizer import Source
from training import curriculum, evaluation, slots
from training.evaluation import questions
from training.loading import load_model
from training.reinforcement import make_environment
from training.slots import sampling

torch.set_num_threads(1)


def world_of(timeout: float = 60.0) -> World:
    return World("cpu", timeout, graceful=False)


# -- the queue -------------------------------------------------------------------------------------


def take_slowly() -> list[list[int]]:
    """Two queues, one after the other; the second rank needs much longer for an item."""
    with world_of() as world:
        found = []
        for _ in range(2):
            world.barrier()
            found.append([])
            for item in world.take(range(30)):
                found[-1].append(item)
                time.sleep(0.2 if world.rank else 0.01)
        world.barrier()
        return found


def test_a_slow_rank_takes_less_and_no_item_is_taken_twice() -> None:
    for quick, slow in zip(*on_processes(2, take_slowly), strict=True):
        assert sorted(quick + slow) == list(range(30)) and len(quick) > 2 * len(slow) > 0
    assert list(World("cpu").take("abc")) == ["a", "b", "c"]


# -- the same answers ------------------------------------------------------------------------------


def sampled(path: Path) -> list[tuple]:
    """What evaluate.answer gives on this rank, with fewer slots than questions."""
    asked = questions(names("toy", "test"), 6)
    cfg = evaluate.Config(max_tokens=24, samples=2, protocol="code", slots=2, sandbox="none")
    with world_of() as world, Sandbox(require="none", quiet=True) as sandbox:
        model, tokenizer = load_model("tiny", world, "float32")
        environment = make_environment(cfg, cfg, tokenizer, sandbox)
        journal = evaluation.Journal(path, {}, world.rank)
        episodes = evaluate.answer(model, environment, asked, cfg, world, journal)
        own = len(journal.entries)
    return own, [(e.problem.question, e.group, e.tokens, e.source, e.finish) for e in episodes]


def test_two_ranks_sample_the_tokens_of_one_on_both(tmp_path: Path) -> None:
    (count, want), *_ = [sampled(tmp_path / "one")]
    assert count == 12 == len(want) and [group for _, group, *_ in want] == [i // 2 for i in range(12)]
    shared = on_processes(2, functools.partial(sampled, tmp_path / "two"))
    assert [found for _, found in shared] == [want, want]
    assert sum(own for own, _ in shared) == 12 and min(own for own, _ in shared) > 2


class Killed(Exception):
    """The end of a start that is interrupted."""


def scripted(log: Path, left: list[int], sampler, environment, requests, on_finish) -> list:
    """In the place of a rollout: the right answer to two questions of three. Every answer's key is written
    down; after `left` of them the start is Killed."""
    for request in requests:
        if not left:
            raise Killed
        left.pop()
        problem = request.problem
        episode = Episode(problem, request.group, finish=Finish.STOP)
        episode.append(environment.prompt(problem), Source.PROMPT)
        text = f"It is <<<{problem.answer if problem.index % 3 else 'unknown'}>>>"
        ids = [*environment.tokenizer.encode(text), environment.tokenizer.stop_ids[0]]
        episode.append(ids, Source.POLICY)
        with open(log, "a") as f:
            f.write(f"{environment.protocol.name} {environment.system} {request.key}\n")
        on_finish(environment.grade(episode))
        time.sleep(0.002)
    return []


WORDS = "--sandbox none --tasks toy_add_sum,toy_add_last --device cpu --rank-timeout 60 --preload="
COMMANDS = {
    "evaluate": (evaluate, "--questions 20 --samples 2"),
    "curriculum": (curriculum, "--questions 8 --samples 2"),
    "coldstart": (coldstart, "--source model --model tiny --per-task 5 --max-tokens 64"),
}


def start(name: str, out: Path, stop_after: int = 1000, more: str = "") -> None:
    """A command on this rank with `more` options, its rollouts scripted. After so many answers the rank is
    gone without a word; in that case, and where the others are gone, nothing is said."""
    script, words = COMMANDS[name]
    log = out.with_suffix(f".{os.environ.get('RANK', 0)}.log")
    kept, argv = evaluation.rollout, sys.argv
    evaluation.rollout = functools.partial(scripted, log, [0] * stop_after)
    sys.argv = [name, *WORDS.split(), *words.split(), *more.split(), "--out", str(out)]
    try:
        script.main()
    except (Killed, UsageError):
        if "RANK" not in os.environ or stop_after == 1000:
            raise
        os._exit(1)
    finally:
        evaluation.rollout, sys.argv = kept, argv


def asked_in(folder: Path) -> list[str]:
    return sorted(line for log in folder.glob("*.log") for line in log.read_text().splitlines())


def content(path: Path) -> str:
    return path.read_text().replace(str(path), "FILE")


@pytest.mark.parametrize("name, ranks", [("evaluate", 3), ("curriculum", 1), ("coldstart", 1)])
def test_a_killed_run_asks_nothing_twice_with_any_number_of_ranks(
    name: str, ranks: int, tmp_path: Path
) -> None:
    """Killed on `ranks` ranks, finished on two: the file of one rank that nobody has disturbed."""
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir(), several.mkdir()
    start(name, one / "out.json")
    assert len(asked_in(one)) == len(set(asked_in(one))) >= 40
    out = several / "out.json"
    if ranks == 1:
        with pytest.raises(Killed):
            start(name, out, 7)
    else:
        on_processes(ranks, functools.partial(start, name, out, 7), lost=range(ranks))
    assert len(parts(out)) == ranks and not out.exists() and 7 <= len(asked_in(several)) <= 7 * ranks
    with open(parts(out)[-1], "a") as part:
        part.write('["cut in the midd')
    on_processes(2, functools.partial(start, name, out))
    assert asked_in(several) == asked_in(one)
    assert content(out) == content(one / "out.json")
    assert [p for p in several.iterdir() if p.suffix != ".log"] == [out]


@pytest.mark.parametrize("name, edited", [
    ("evaluate", "prompt.txt"), ("evaluate", "questions.jsonl"), ("curriculum", "questions.jsonl"),
    ("coldstart", "prompt.txt"), ("coldstart", "questions.jsonl"),
])  # fmt: skip
def test_answers_before_an_edit_are_given_again(name: str, edited: str, tmp_path: Path) -> None:
    """The prompt, or what is right, changes between two starts: the file is that of a start with the new."""
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir(), several.mkdir()
    prompt, questions = tmp_path / "prompt.txt", tmp_path / "questions.jsonl"
    prompt.write_text("Now: {question}")
    rows = [{"question": f"Which number is {i}?", "answer": str(i)} for i in range(9)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.math.load.cache_clear()
    more = f" --tasks {questions}" + f" --prompt-file {prompt}" * (name != "curriculum")
    with pytest.raises(Killed):
        start(name, several / "out.json", 5, more)
    (tmp_path / edited).write_text(
        (tmp_path / edited).read_text().replace("Now", "Then").replace('r": "', 'r": "1')
    )
    tasks.math.load.cache_clear()
    start(name, several / "out.json", more=more)
    start(name, one / "out.json", more=more)
    assert content(several / "out.json") == content(one / "out.json")
    assert len(asked_in(several)) == 5 + len(asked_in(one))


def test_ranks_go_on_as_one_with_their_own_options_only(tmp_path: Path) -> None:
    """A part of another rank, begun with other options, is refused too."""
    out = tmp_path / "out.json"
    evaluation.Journal(out, {"seed": 0}).add("a", 1)
    evaluation.Journal(out, {"seed": 0}, rank=11).add("b", 2)
    (tmp_path / "out.json.part.old").write_text("another file\n")
    assert evaluation.Journal(out, {"seed": 0}).entries == {"a": 1, "b": 2}
    assert evaluation.Journal(out, {"seed": 0}, rank=1).entries == {}
    Path(f"{out}.part").unlink()
    with pytest.raises(UsageError, match="part.* was begun with other options: --seed is 1, was 0"):
        evaluation.Journal(out, {"seed": 1})


# -- ranks that are lost ---------------------------------------------------------------------------


def left_alone(lost: int, out: Path) -> str:
    """One rank leaves in the midst of its answers; what the other one says."""
    rank = int(os.environ["RANK"])
    try:
        start("evaluate", out, 3 if rank == lost else 1000)
    except UsageError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_lost_ends_the_others_with_one_line(lost: int, tmp_path: Path) -> None:
    began = time.monotonic()
    said = on_processes(2, functools.partial(left_alone, lost, tmp_path / "out.json"), lost=[lost])[1 - lost]
    assert f"rank {1 - lost} of 2" in said and "start all ranks again" in said and "\n" not in said
    assert "--resume" not in said and time.monotonic() - began < 50, "not the whole --rank-timeout"


@pytest.mark.parametrize("words, said", [
    ("evaluate --url http://localhost:1/v1 --model m", "--url http://localhost:1/v1: one process asks"),
    ("coldstart --source programs", "--source programs has one process"),
])  # fmt: skip
def test_what_has_one_process_refuses_torchrun(words: str, said: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(World, "_connect", lambda self: None)
    monkeypatch.setattr(World, "barrier", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", [*words.split(), "--out", str(tmp_path / "out.json")])
    with pytest.raises(UsageError, match=said):
        COMMANDS[words.split()[0]][0].main()


def other_questions() -> str:
    with world_of() as world:
        model, tokenizer = load_model("tiny", world, "float32")
        cfg = evaluate.Config(max_tokens=4, protocol="text")
        environment = make_environment(cfg, cfg, tokenizer, None)
        try:
            evaluate.answer(model, environment, [get("toy_add_sum").problem(world.rank)], cfg, world)
        except UsageError as error:
            return str(error)
    return "nothing"


def test_ranks_with_different_questions_are_refused() -> None:
    assert all("the ranks have different questions" in said for said in on_processes(2, other_questions))


# -- memory ----------------------------------------------------------------------------------------

SEVEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
SEVEN |= {"num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768}


@pytest.mark.parametrize("free, dtype, fitted", [
    (80e9 - 15.2e9, torch.bfloat16, 53),  # one card that holds the weights
    (640e9, torch.bfloat16, 128),
    (40e9, torch.float32, 16),  # a CPU without bfloat16
    (1e9, torch.bfloat16, 0),
])  # fmt: skip
def test_128_requests_of_16k_at_7b_take_the_slots_that_fit(monkeypatch, free, dtype, fitted: int) -> None:
    """A token's keys and values at 7B: 2 x 28 layers x 4 heads x 128 channels, 57,344 bytes in bfloat16; a
    row of 512 + 16,384 tokens has 0.97 GB. 128 of them would be 124 GB."""
    with torch.device("meta"):
        model = Qwen(Config(**SEVEN)).to(dtype)
    length, made = 512 + 16_384, []

    class Recorder:
        def __init__(self, model, slots, max_len, **options):
            made.append((slots, max_len))

        def close(self):
            pass

    world = World("cpu")
    monkeypatch.setattr(world, "free_memory", lambda: int(free))
    monkeypatch.setattr(slots, "Sampler", Recorder)
    cfg = evaluate.Config(protocol="retool", max_tokens=16_384)
    if not fitted:
        with pytest.raises(UsageError, match="= 16896 tokens fits: it needs 0.97 GB, 1.00 GB are free"):
            sampling(model, cfg, world, 128, length=length).__enter__()
        return
    with sampling(model, cfg, world, 128, length=length):
        assert made == [(fitted, length)]
    row = 2 * 28 * 4 * 128 * dtype.itemsize * length
    assert fitted * row <= free and (fitted == 128 or (fitted + 1) * row > 0.78 * free)


def test_every_command_takes_the_slots_that_fit(tmp_path: Path, monkeypatch, capsys) -> None:
    """Room for few answers: the others wait their turn."""
    each = slots.slot_bytes(load_model("tiny", World("cpu"), "float32")[0], 60)
    monkeypatch.setattr(World, "free_memory", lambda self: 3 * each)
    for name, (script, words) in COMMANDS.items():
        words += " --max-tokens 8" + (" --styles text" if name == "coldstart" else "")
        out = str(tmp_path / f"{name}.json")
        monkeypatch.setattr("sys.argv", [name, *WORDS.split(), *words.split(), "--out", out])
        try:
            script.main()
        except UsageError as error:
            assert "no trajectory was kept" in str(error)
        assert "--slots fit into memory; the others wait their turn" in capsys.readouterr().err, name
    assert json.loads((tmp_path / "evaluate.json").read_text())["overall"]["micro"]["episodes"] == 40
