"""A conversation in the terminal with a model that runs code.

    python chat.py --model DIR
    python chat.py --model DIR --prompt "What is 2 ** 61 - 1 modulo 97?"
    python chat.py --model DIR --file questions.jsonl --out answers.jsonl

Text streams as it is sampled; a code block runs in the sandbox when it closes, and its output appears at
once. Ctrl-C stops the answer, not the program. What was said stays as the tokens it was said in.
"""

import codecs
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from episode import Call, Episode
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from rollout import NOTICE, Conversation, Limits, PromptEncoder, Request, grade, open_sandbox, rollout
from sample import Sampler
from sandbox import Sandbox
from tasks import PROTOCOLS, Problem, get_protocol, output
from tokenizer import COLOURS, Source, Tokenizer, coloured, printable
from training.loading import load_model

COMMANDS = """/reset      forget the conversation
/save FILE  write it as JSON lines that sft.py reads
/code on    let the model run programs (off: text only)
/tokens     show all tokens, coloured by who wrote them
/quit       leave; so does Ctrl-D"""


KEYS = ("question", "problem", "input", "prompt")  # of a question in --file


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")
    prompt: str | None = option(None, "one question; prints the answer and leaves")
    file: str | None = option(None, "questions as JSON lines with one of the keys " + ", ".join(KEYS))
    out: str | None = option(None, "answers to --file, as JSON lines")
    temperature: float = option(0.6, "0 is greedy (R1-Code-Interpreter evaluates at 0.6)", least=0)
    top_p: float = option(1.0, "nucleus (ReTool: 0.7)", above=0, most=1)
    top_k: int = option(0, "draw from the k likeliest tokens; 0: from all", least=0)
    max_tokens: int = option(2048, "tokens of an answer, the interpreter's included", least=1)
    max_calls: int = option(8, "programs per answer", least=0)
    timeout: float = option(10.0, "seconds per program", above=0)
    slots: int = option(32, "questions of --file answered at once", least=1)
    seed: int = option(0, "sampling", least=0)
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    sandbox_url: str | None = option(None, "SandboxFusion server that runs the programs instead")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


class Chat:
    """The conversation so far, as tagged tokens, and the model that continues it."""

    def __init__(self, model: Qwen, tokenizer: Tokenizer, sandbox: Sandbox, cfg: Config):
        self.model, self.tokenizer, self.sandbox, self.cfg = model, tokenizer, sandbox, cfg
        self.protocol = get_protocol(cfg.protocol)
        self.system = config.read_text(cfg.system_file, "--system-file")
        self.limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.tokens: list[int] = []
        self.source: list[int] = []
        self.messages: list[dict] = []

    def ask(self, question: str, show: Callable[[bytes, Source], None]) -> Episode:
        """Answer a question, calling show() with each piece of text as it appears; Ctrl-C ends the answer."""
        episode = Episode(Problem("", 0, question, None), group=0)
        episode.append(self.tokens, Source.PROMPT)
        episode.source[:] = self.source
        episode.append(self._open(question), Source.PROMPT)
        prompt = len(episode.tokens)
        talk = Conversation(episode, self.protocol, self.tokenizer, self.limits)
        cfg = self.cfg
        room = prompt + self.limits.max_tokens + 1
        options = {"temperature": cfg.temperature, "top_p": cfg.top_p, "top_k": cfg.top_k}
        turns = [{"role": "user", "content": question}]
        try:
            sampler = Sampler(self.model, 1, room, **options)
            sampler.add(episode.tokens, key=(cfg.seed, len(self.messages), 0, 0))
            reason = None
            while reason is None:
                for event in sampler.step():  # no event while a long prompt is fed in pieces
                    reason = talk.take(event)
                    if reason != "stop":
                        show(self.tokenizer.piece(event.token), Source.POLICY)
                    if reason in ("run", "notice"):
                        reason = self._reply(sampler, talk, reason, show, turns)
        except KeyboardInterrupt:
            reason = "length"
        turns.append({"role": "assistant", "content": self._text(episode)})
        if episode.tokens[-1] != self.tokenizer.stop_ids[0]:  # cut short: its turn must end all the same
            episode.append([self.tokenizer.stop_ids[0]], Source.PROMPT)
        self.tokens, self.source = list(episode.tokens), list(episode.source)
        self.messages += turns
        answer = Episode(episode.problem, 0)
        answer.append(episode.tokens[prompt:], Source.POLICY)
        answer.source = episode.source[prompt:]
        answer.calls = episode.calls
        return grade(answer, reason, self.protocol, self.tokenizer)

    def _open(self, question: str) -> list[int]:
        """The ids that put a question: the first with the head prompt, later ones after the last answer."""
        if self.tokens:
            ids = self.tokenizer.follow_up(question)
        else:
            ids = self.tokenizer.chat(self.protocol.system if self.system is None else self.system, question)
        return ids + self.tokenizer.encode(self.protocol.prefill)

    def _reply(
        self, sampler: Sampler, talk: Conversation, what: str, show: Callable, turns: list
    ) -> str | None:
        """Run the program that was just closed and feed its output; how the answer ended if it did."""
        sampler.park(0)
        if what == "run":
            turn = talk.turn
            result = self.sandbox.run(turn.program, self.limits.timeout)
            if result.status == "sandbox_error":
                print(f"\nsandbox failed, twice: {result.stderr}", file=sys.stderr)
                return "sandbox"
            talk.episode.calls.append(Call(turn.program, result, turn.block_start))
            text = output(result)
        else:
            text = NOTICE
        wrapped, said = self.protocol.wrap(text, self.limits.max_output), self._text(talk.episode)
        ids = talk.hear(wrapped)
        if ids is None:
            return "length"
        turns += [{"role": "assistant", "content": said}, {"role": "tool", "content": text}]
        show(wrapped.encode(), Source.TOOL)
        sampler.extend(0, ids)
        return None

    def _text(self, episode: Episode) -> str:
        """What the model has written since someone else did, without the token that ends its turn."""
        begin = 1 + max(i for i, source in enumerate(episode.source) if source != Source.POLICY)
        return self.tokenizer.decode(t for t in episode.tokens[begin:] if t not in self.tokenizer.stop_ids)


class Screen:
    """Writes streamed pieces to stdout: the interpreter in colour, all plain where it is no terminal."""

    def __init__(self):
        self.colour = sys.stdout.isatty()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self, piece: bytes, source: Source) -> None:
        """Write a piece as soon as its bytes make characters."""
        text = self.decoder.decode(piece)
        if self.colour:
            text = printable(text)
        if self.colour and source == Source.TOOL:
            text = f"{COLOURS[source]}{text}\033[0m"
        sys.stdout.write(text)
        sys.stdout.flush()

    def answer(self, episode: Episode) -> None:
        """End the stream; the final answer stands out."""
        sys.stdout.write(self.decoder.decode(b"", final=True) + "\n")
        self.decoder.reset()
        if episode.answer is not None:
            bold, plain = ("\033[1;32m", "\033[0m") if self.colour else ("", "")
            print(f"{bold}answer: {printable(episode.answer)}{plain}")
        elif episode.finish != "stop":
            print(f"(no answer: {episode.finish})")


def command(line: str, chat: Chat) -> bool:
    """Carry out a /command; False to leave."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "/quit":
        return False
    if word == "/reset":
        chat.reset()
        print("the conversation is forgotten")
    elif word == "/save" and rest:
        head = [] if chat.system is None else [{"role": "system", "content": chat.system}]
        record = {"protocol": chat.protocol.name, "messages": head + chat.messages}
        try:
            with open(rest, "x") as f:
                f.write(json.dumps(record) + "\n")
            print(f"{len(chat.messages)} messages -> {rest}")
        except OSError as error:
            print(f"not saved: {error}; name a new file")
    elif word == "/code" and rest == "on" and not get_protocol(chat.cfg.protocol).open:
        print(f"--protocol {chat.cfg.protocol} runs no code; start with --protocol r1ci")
    elif word == "/code" and rest in ("on", "off"):
        chat.protocol = get_protocol(chat.cfg.protocol if rest == "on" else "text")
        chat.reset()  # the head prompt is another one
        print(f"code is {rest}; the conversation begins anew")
    elif word == "/tokens":
        print(coloured(chat.tokenizer, chat.tokens, chat.source, colour=sys.stdout.isatty()))
    else:
        print(COMMANDS)
    return True


def answer(chat: Chat, screen: Screen, question: str) -> None:
    """Put a question and show the answer. The first Ctrl-C stops it, a second one before it is out does
    nothing."""

    def first(*_) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        screen.answer(chat.ask(question, screen.show))
    except KeyboardInterrupt:  # outside the model's turn
        print("\n(stopped)")
    finally:
        signal.signal(signal.SIGINT, before)


def converse(chat: Chat) -> None:
    """Read questions until the end of input. Raises UsageError where a file or pipe is not UTF-8."""
    screen = Screen()
    if screen.colour:
        print("ask, or type /help")
    while True:
        try:
            line = input("> " if screen.colour else "").strip()
            line.encode()  # a byte that is no text may have been let through as half a character
        except EOFError:
            return
        except KeyboardInterrupt:
            print("  (/quit or Ctrl-D leaves)")
            continue
        except UnicodeError as error:
            if not sys.stdin.isatty():
                raise UsageError(f"stdin: {error}; expected questions in UTF-8") from None
            print("that is not UTF-8; type it again")
            continue
        if line.startswith("/"):
            if not command(line, chat):
                return
        elif line:
            answer(chat, screen, line)


def read_questions(path: str) -> list[str]:
    """The questions of a JSONL file. Raises UsageError naming the line that holds none."""
    found = []
    text = config.read_text(path, "--file")
    for number, line in enumerate(text.split("\n") if text else [], 1):  # JSON may hold other line ends
        try:
            record = json.loads(line)
            found.append(next(record[key] for key in KEYS if isinstance(record.get(key), str)))
        except (ValueError, AttributeError, StopIteration):
            keys = ", ".join(KEYS)
            raise UsageError(f"--file {path}, line {number}: expected an object with one of {keys}") from None
    return found


def answer_file(model: Qwen, tokenizer: Tokenizer, sandbox: Sandbox, cfg: Config) -> None:
    """Answer all questions of --file together; written at once when all are done."""
    asked, protocol = read_questions(cfg.file), get_protocol(cfg.protocol)
    system = config.read_text(cfg.system_file, "--system-file")
    encode = PromptEncoder(tokenizer, protocol, system)
    length = max((len(encode(q)) for q in asked), default=1)
    wanted = [Request(Problem("", i, q, None), i, (cfg.seed, 0, i, 0)) for i, q in enumerate(asked)]
    options = {"temperature": cfg.temperature, "top_p": cfg.top_p, "top_k": cfg.top_k}
    sampler = Sampler(model, max(1, min(cfg.slots, len(asked))), length + cfg.max_tokens + 1, **options)
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    with tqdm(total=len(wanted), desc="chat") as bar:
        episodes = rollout(
            sampler,
            tokenizer,
            wanted,
            protocol,
            sandbox,
            limits,
            on_finish=lambda _: bar.update(),
            system=system,
        )
    with open(cfg.out, "w") as f:
        for e in episodes:
            calls = [{"code": c.code, "status": c.result.status, "output": output(c.result)} for c in e.calls]
            text = tokenizer.decode(t for t, s in zip(e.tokens, e.source, strict=True) if s != Source.PROMPT)
            record = {"question": e.problem.question, "answer": e.answer, "finish": e.finish}
            f.write(json.dumps(record | {"text": text, "calls": calls}) + "\n")


def main() -> None:
    cfg = config.parse(Config, __doc__)
    if get_protocol(cfg.protocol).follow_up:
        raise UsageError(f"--protocol {cfg.protocol}: in a conversation the next question is yours; use r1ci")
    if (cfg.file is None) != (cfg.out is None):
        raise UsageError("--file and --out go together: questions in, answers out")
    if cfg.prompt is not None and cfg.file is not None:
        raise UsageError("--prompt and --file: expected one of them")
    try:
        (cfg.prompt or "").encode()
    except UnicodeEncodeError:
        raise UsageError(f"--prompt {cfg.prompt!r}: expected a question in UTF-8") from None
    config.new_file(cfg.out, "--out")
    model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed)
    with open_sandbox(cfg.sandbox, cfg.timeout, cfg.preload, url=cfg.sandbox_url) as sandbox:
        if cfg.file:
            answer_file(model, tokenizer, sandbox, cfg)
            return
        chat = Chat(model, tokenizer, sandbox, cfg)
        if cfg.prompt is not None:
            answer(chat, Screen(), cfg.prompt)
        else:
            converse(chat)


if __name__ == "__main__":
    config.run(main)
