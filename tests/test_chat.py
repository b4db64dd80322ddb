"""The conversation: append-only tokens, the same answer as rollout() gives, commands."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import chat
import model as models
import sample
from plumbing.config import UsageError
from plumbing.ranks import World
from rollout import Environment, Limits, Request, rollout
from sample import Event, Sampler, generate
from sandbox import Sandbox
from tasks import PROTOCOLS, Problem
from tokenizer import Source
from training.loading import load_model
from training.reinforcement import make_environment
from trajectories.encoding import encode

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parts() -> tuple:
    model, tokenizer = load_model("tiny", World("cpu"), "float32")
    with Sandbox(require="none", quiet=True) as sandbox:
        yield model, tokenizer, sandbox


def conversation(parts: tuple, **options) -> chat.Chat:
    cfg = chat.Config(**{"max_tokens": 40, "temperature": 1.0, **options})
    environment = make_environment(cfg, cfg, parts[1], parts[2], skip_ungraded=True)
    return chat.Chat(parts[0], environment, cfg)


@pytest.mark.parametrize("protocol", ["r1ci", "code", "text"])
def test_the_first_answer_is_what_rollout_samples(parts: tuple, protocol: str) -> None:
    model, tokenizer, sandbox = parts
    talk, seen = conversation(parts, protocol=protocol), []
    answer = talk.ask("What is 6 * 7?", lambda piece, source: seen.append((piece, source)))
    request = Request(Problem("", 0, "What is 6 * 7?", None), 0, key=(0, 0, 0, 0))
    sampler = Sampler(model, 1, 300)
    limits = Limits(max_tokens=40, timeout=10.0)
    (want,) = rollout(sampler, Environment(tokenizer, PROTOCOLS[protocol], sandbox, limits), [request])
    assert talk.tokens[: len(want.tokens)] == want.tokens
    assert answer.answer == want.answer and answer.finish == want.finish
    shown = b"".join(piece for piece, _ in seen)
    written = [t for t, s in zip(want.tokens, want.source, strict=True) if s != Source.PROMPT]
    assert shown == b"".join(tokenizer.piece(t) for t in written if t not in tokenizer.stop_ids)


def test_a_conversation_only_grows_and_every_turn_is_closed(parts: tuple) -> None:
    tokenizer = parts[1]
    talk = conversation(parts)
    before: list[int] = []
    for question in ("one?", "two?", "three?"):
        talk.ask(question, lambda *_: None)
        assert talk.tokens[: len(before)] == before and len(talk.tokens) == len(talk.source)
        assert talk.tokens[-1] == tokenizer.stop_ids[0]
        before = list(talk.tokens)
    text = tokenizer.decode(talk.tokens)
    assert [text.index(q) for q in ("one?", "two?", "three?")] == sorted(
        text.index(q) for q in ("one?", "two?", "three?")
    )


def test_ctrl_c_stops_the_answer_not_the_conversation(parts: tuple) -> None:
    talk = conversation(parts)
    shown = []

    def interrupt(piece: bytes, source: Source) -> None:
        shown.append(piece)
        if len(shown) == 5:
            raise KeyboardInterrupt

    answer = talk.ask("long?", interrupt)
    assert answer.finish == "length" and len(answer.policy_tokens) == 5
    assert talk.tokens == [*answer.tokens, parts[1].stop_ids[0]]  # the turn ends all the same
    talk.ask("next?", lambda *_: None)
    assert parts[1].decode(talk.tokens).count("<|im_start|>assistant") == 2


class Scripted:
    """A sampler whose model says what the test wrote: the texts in turn, one token a step; no event first, as
    while a long prompt is fed."""

    def __init__(self, tokenizer, *texts: str):
        self.texts = [tokenizer.encode(text) for text in texts]
        self.texts[-1].append(tokenizer.stop_ids[0])
        self.steps, self.free, self.active, self.max_len = 0, 1, 0, 0

    def __call__(self, model, slots, max_len, **_):
        self.max_len = max_len
        return self

    def add(self, tokens, key) -> int:
        self.free, self.active = 0, 1
        return 0

    def step(self) -> list[Event]:
        self.steps += self.active
        return [Event(0, self.texts[0].pop(0), 0.0)] if self.steps > 2 and self.active else []

    def park(self, slot) -> None:
        self.active = 0

    def extend(self, slot, ids) -> None:
        self.active = 1
        del self.texts[0]

    def release(self, slot) -> None:
        self.free = 1


PROGRAM = "Let me see.\n```python\nprint(6 * 7)\n```"


def test_a_prompt_fed_in_pieces_gives_no_event_at_first(parts: tuple, monkeypatch) -> None:
    monkeypatch.setattr(sample, "CHUNK", 16)
    talk = conversation(parts, max_tokens=5)
    answer = talk.ask("What is 6 * 7? " * 20, lambda *_: None)
    assert len(talk.tokens) > 5 * 16 and answer.finish in ("stop", "length")


def test_what_is_saved_is_what_was_said_wherever_it_was_cut(parts: tuple, monkeypatch) -> None:
    """Whole, stopped while the program ran, and with a result that did not fit: each turn is there once."""
    tokenizer = parts[1]

    def roles(talk: chat.Chat) -> list[str]:
        monkeypatch.setattr(chat, "Sampler", Scripted(tokenizer, PROGRAM, "So <<<42>>>."))
        talk.ask("6 * 7?", lambda *_: None)
        episode = encode({"messages": talk.messages}, tokenizer, "r1ci")
        assert tokenizer.decode(episode.tokens) == tokenizer.decode(talk.tokens)
        return [turn["role"] for turn in talk.messages]

    assert roles(conversation(parts, max_tokens=200)) == ["user", "assistant", "tool", "assistant"]
    short = len(tokenizer.encode(PROGRAM)) + 3
    assert roles(conversation(parts, max_tokens=short)) == ["user", "assistant"]

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts[2], "submit", interrupted)
        assert roles(conversation(parts, max_tokens=200)) == ["user", "assistant"]


def test_a_second_ctrl_c_does_not_end_the_program(parts: tuple, monkeypatch, capsys) -> None:
    """It comes while the answer that the first one stopped is being put away."""
    talk, before = conversation(parts, max_tokens=200), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(chat, "Sampler", Scripted(parts[1], "one two three"))
    read, screen = chat.answer_messages, chat.Screen()

    def again(*parts) -> list:
        signal.raise_signal(signal.SIGINT)
        return read(*parts)

    monkeypatch.setattr(chat, "answer_messages", again)
    monkeypatch.setattr(screen, "show", lambda *_: signal.raise_signal(signal.SIGINT))
    chat.answer(talk, screen, "count")
    assert len(talk.messages) == 2 and talk.tokens[-1] == parts[1].stop_ids[0]
    assert "no answer: length" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_the_prompt_of_a_file_is_saved_too(parts: tuple, tmp_path: Path) -> None:
    (tmp_path / "head.txt").write_text("Be brief.\n")
    (tmp_path / "turn.txt").write_text("Now: {question}\n")
    files = {"system_file": str(tmp_path / "head.txt"), "prompt_file": str(tmp_path / "turn.txt")}
    talk = conversation(parts, **files)
    talk.ask("one?", lambda *_: None)
    chat.command(f"/save {tmp_path / 'a.jsonl'}", talk)
    record = json.loads((tmp_path / "a.jsonl").read_text())
    assert record["messages"][0] == {"role": "system", "content": "Be brief."}
    assert record["prompt"] == "Now: {question}" and "Now: one?" in parts[1].decode(talk.tokens)
    assert parts[1].decode(encode(record, parts[1], "r1ci").tokens) == parts[1].decode(talk.tokens)


def test_an_answer_takes_the_positions_that_are_left_and_says_so(parts: tuple, capsys) -> None:
    """2,048 tokens are a default; the tiny model has 1,024 positions. A full conversation says so."""
    talk = conversation(parts, protocol="text", max_tokens=2048)
    talk.tokens, talk.source = [7] * 1000, [0] * 1000
    episode = talk.ask("q", lambda *_: None)
    put = episode.source.index(1)
    assert f"({1024 - put} of --max-tokens 2048 are left" in capsys.readouterr().err
    assert len(episode.tokens) <= 1024
    talk.tokens = [7] * 1024
    with pytest.raises(UsageError, match="fill the model's 1024 positions; /reset"):
        talk.ask("q", lambda *_: None)


def test_code_cannot_be_put_on_where_the_protocol_runs_none(parts: tuple, capsys) -> None:
    chat.command("/code on", conversation(parts, protocol="text"))
    assert capsys.readouterr().out == "--protocol text runs no code; start with --protocol r1ci\n"


def test_what_is_not_a_question_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["chat.py", "--prompt", os.fsdecode(b"caf\xe9")])
    with pytest.raises(UsageError, match=r"^--prompt 'caf\\udce9': expected a question in UTF-8$"):
        chat.main()
    command = [sys.executable, "chat.py", "--sandbox", "none"]
    environment = os.environ | {"PYTHONUTF8": "1"}
    root = Path(chat.__file__).parent
    found = subprocess.run(command, input=b"caf\xe9?\n", capture_output=True, cwd=root, env=environment)
    *_, line = found.stderr.decode().splitlines()
    assert found.returncode == 2 and line.startswith("chat.py: stdin: 'utf-8' codec can't")


def test_a_whole_file_is_one_question(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "question").write_bytes(b"\xef\xbb\xbfone\ntwo \xc3\xa9\n")
    with open(tmp_path / "question") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert chat.only_question("-") == "one\ntwo \N{LATIN SMALL LETTER E WITH ACUTE}"
        with pytest.raises(UsageError, match="expected a question, found none"):
            chat.only_question("-")


KEYS = {  # what is typed or pasted -> the question
    "ab\x1b[DX\n": "aXb",  # the left arrow
    "a" * 9000 + "\n": "a" * 9000,
    "\x1b[200~one\ntwo\n\nthree\x1b[201~\n": "one\ntwo\n\nthree",  # a paste that the terminal marks
    "raw one\nraw two\n": "raw one\nraw two",  # and one that it does not
    "\x1b[A\x1b[A\x1b[A\n": "one\ntwo\n\nthree",  # the history
    "/save x\n": "/save x",
    "/usr/bin\nWhat is it?\n": "/usr/bin\nWhat is it?",  # a paste is never a command
}


def test_a_terminal_has_line_editing_and_a_paste_is_one_question() -> None:
    pytest.importorskip("readline")
    code = (
        "import chat\nchat.edit_lines()\nwhile True: print('=', repr(chat.read_question('> ')), flush=True)"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(Path(chat.__file__).parent)
        os.execve(sys.executable, [sys.executable, "-c", code], os.environ | {"TERM": "xterm"})
    seen = b""

    def until(text: bytes) -> bytes:
        nonlocal seen
        while text not in seen:
            seen += os.read(fd, 1 << 16)
        before, _, seen = seen.partition(text)
        return before

    for keys, question in KEYS.items():
        until(b"> ")
        time.sleep(0.2)  # what comes before the prompt is typed ahead, and each line of it a question
        data = keys.encode()
        while data:
            data = data[os.write(fd, data[:1000]) :]
        until(b"= ")
        assert until(b"\n").decode().strip() == repr(question)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(fd)


def test_commands(parts: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    talk = conversation(parts)
    talk.ask("one?", lambda *_: None)
    file = tmp_path / "saved.jsonl"
    assert chat.command(f"/save {file}", talk)
    record = json.loads(file.read_text())
    assert record["messages"][0] == {"role": "user", "content": "one?"}
    talk.ask("two?", lambda *_: None)
    chat.command(f"/save {tmp_path / 'two.jsonl'}", talk)
    episode = encode(json.loads((tmp_path / "two.jsonl").read_text()), parts[1], "r1ci")
    assert parts[1].decode(episode.tokens) == parts[1].decode(talk.tokens), "sft.py reads what was said"
    chat.command(f"/save {file}", talk)
    assert "exists" in capsys.readouterr().out
    chat.command("/tokens", talk)
    assert "one?" in capsys.readouterr().out
    assert chat.command("/code off", talk) and talk.environment.protocol.name == "text" and not talk.tokens
    assert chat.command("/code on", talk) and talk.environment.protocol.name == "r1ci"
    talk.ask("one?", lambda *_: None)
    assert chat.command("/reset", talk) and not talk.tokens and not talk.messages
    chat.command("/what", talk)
    assert "/save FILE" in capsys.readouterr().out
    assert not chat.command("/quit", talk)


def test_a_model_cannot_steer_the_terminal(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = chat.Screen()
    screen.show(b"\x1b[2Ja\tb\n\xc3", Source.POLICY)
    screen.show(b"\xa9\x9b1m", Source.POLICY)
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}[2Ja\tb\n\xe9\N{REPLACEMENT CHARACTER}1m"


@pytest.mark.parametrize("which", ["random weights", "runs/demo/grpo/final"])
def test_transformers_answers_the_same_from_a_saved_folder(which: str, parts: tuple, tmp_path: Path) -> None:
    """What save() writes is a checkpoint like any other: read and continued, greedy, by transformers."""
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    if which == "random weights":
        folder = tmp_path / "final"
        models.save(parts[0], folder, parts[1])
    elif not (folder := Path(__file__).parent.parent / which).is_dir():
        pytest.skip(f"no {which}: `make demo` has not run here")
    model, tokenizer = load_model(str(folder), World("cpu"), "float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reader = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for question in ("Take [72, 16, 29, 53, 87]. Subtract 4. Find the largest.", "Name its capital. Japan."):
        opening = PROTOCOLS["r1ci"].opening(question)
        asked = [{"role": "user", "content": opening[1]}]
        ids = reader.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer.chat(*opening)
        (ours,) = generate(model, [ids], max_new_tokens=40, temperature=0.0, stop_ids=tokenizer.stop_ids)
        got = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
        assert got.tolist() == ours.tokens
