"""A conversation in the terminal with a model that runs code.

    python chat.py --model DIR
    python chat.py --model DIR --prompt "What is 2 ** 61 - 1 modulo 97?"
    python chat.py --model DIR --prompt - < question.txt

Text streams as it is sampled. A code block runs in the sandbox when it closes, and its output appears at
once. Ctrl-C stops the answer. Earlier turns stay as the tokens they were sampled in. A terminal has line
editing and a history; text that is pasted is one question. Without a terminal each line of stdin is one.
"""

import codecs
import contextlib
import json
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from episode import Episode, Finish
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.progress import colourful
from plumbing.ranks import World
from rollout import Environment, Limits, Request, rollout
from sample import Sampler
from tasks import Problem, get_protocol, in_words
from tokenizer import COLOURS, Source, coloured, printable
from training.interpreter import open_sandbox
from training.loading import load_model
from training.options import ModelOptions, Prompting, SandboxOptions
from training.reinforcement import make_environment
from trajectories.records import answer_messages

COMMANDS = """/reset      forget the conversation
/save FILE  write it as JSON lines that sft.py reads
/code on    let the model run programs (off: text only)
/tokens     show all tokens, coloured by who wrote them
/quit       leave; so does Ctrl-D"""
PASTE = 0.05  # seconds between two lines that were pasted together


@dataclass(frozen=True)
class Config(Limits, Prompting, ModelOptions, SandboxOptions):
    """Chat."""

    prompt: str | None = option(None, "one question, or - for all of stdin; prints the answer and leaves")
    temperature: float = option(0.6, "0 is greedy (R1-Code-Interpreter evaluates at 0.6)", least=0)
    top_p: float = option(1.0, "nucleus (ReTool: 0.7)", above=0, most=1)
    top_k: int = option(0, "draw from the k likeliest tokens; 0: from all", least=0)
    max_tokens: int = option(2048, "tokens of an answer, the interpreter's included", least=1)
    timeout: float = option(10.0, "seconds per program", above=0)
    seed: int = option(0, "sampling", least=0)


class Chat:
    """The conversation so far, as tagged tokens and as messages, and the model that continues it."""

    def __init__(self, model: Qwen, environment: Environment, cfg: Config):
        self.model, self.environment, self.cfg = model, environment, cfg
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.tokens: list[int] = []
        self.source: list[int] = []
        self.messages: list[dict] = []

    def ask(self, question: str, show: Callable[[bytes, Source], None]) -> Episode:
        """The graded answer to a question. show() gets each piece of text as it appears; Ctrl-C ends the
        answer. The answer is a rollout of one request, whose prompt is the whole conversation."""
        environment, cfg, tokenizer = self.environment, self.cfg, self.environment.tokenizer
        problem = Problem("", 0, question, None)
        put = self._put(problem)
        prompt = self.tokens + put
        episode, shown = Episode(problem, group=0), len(prompt)
        episode.append(prompt, Source.PROMPT)

        def stream(now: Episode) -> None:
            nonlocal episode, shown
            episode = now
            for token, source in zip(now.tokens[shown:], now.source[shown:], strict=True):
                shown += 1
                if source != Source.POLICY or token not in tokenizer.stop_ids:
                    show(tokenizer.piece(token), Source(source))

        options = {"temperature": cfg.temperature, "top_p": cfg.top_p, "top_k": cfg.top_k}
        request = Request(problem, 0, (cfg.seed, len(self.messages), 0, 0), prompt)
        room = self.model.config.max_position_embeddings - len(prompt)
        if room < 1:
            raise UsageError(f"{len(prompt)} tokens fill the model's {room + len(prompt)} positions; /reset")
        if room < cfg.max_tokens:
            print(
                f"({room} of --max-tokens {cfg.max_tokens} are left of the model's positions)",
                file=sys.stderr,
            )
            environment = replace(environment, limits=replace(cfg, max_tokens=room))
        try:
            sampler = Sampler(self.model, 1, len(prompt) + environment.limits.max_tokens + 1, **options)
            rollout(sampler, environment, [request], on_token=stream)
        except KeyboardInterrupt:
            episode.finish = Finish.LENGTH
            environment.grade(episode)
        said = answer_messages(episode, tokenizer, environment.protocol)
        said = said or [{"role": "assistant", "content": ""}]
        self.messages += [{"role": "user", "content": question}, *said]
        self.source += [int(Source.PROMPT)] * len(put) + episode.source[len(prompt) :]
        self.tokens = list(episode.tokens)
        if self.tokens[-1] != tokenizer.stop_ids[0]:  # cut short: its turn must end all the same
            self.tokens.append(tokenizer.stop_ids[0])
            self.source.append(int(Source.PROMPT))
        return episode

    def _put(self, problem: Problem) -> list[int]:
        """The ids that put a question: the first in the protocol's prompt, others after the last answer."""
        if not self.tokens:
            return self.environment.prompt(problem)
        said = "".join(m["content"] for m in self.messages if m["role"] == "assistant")
        return self.environment.tokenizer.follow_up(problem.question, said)


class Screen:
    """Writes streamed pieces to stdout: the interpreter in colour, all plain where it is no terminal."""

    def __init__(self):
        self.colour = colourful(sys.stdout)
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
        e = chat.environment
        head = [] if e.system is None else [{"role": "system", "content": e.system}]
        record = {"protocol": e.protocol.name, "messages": head + chat.messages}
        record |= {} if e.template is None else {"prompt": e.template}
        try:
            with open(rest, "x") as f:
                f.write(json.dumps(record) + "\n")
            print(f"{len(chat.messages)} messages -> {rest}")
        except OSError as error:
            print(f"not saved: {error}; name a new file")
    elif word == "/code" and rest == "on" and not get_protocol(chat.cfg.protocol).open:
        print(f"--protocol {chat.cfg.protocol} runs no code; start with --protocol r1ci")
    elif word == "/code" and rest in ("on", "off"):
        protocol = get_protocol(chat.cfg.protocol)
        protocol = protocol if rest == "on" else in_words(protocol)
        chat.environment = replace(chat.environment, protocol=protocol)
        chat.reset()  # the prompt is another one
        print(f"code is {rest}; the conversation begins anew")
    elif word == "/tokens":
        print(coloured(chat.environment.tokenizer, chat.tokens, chat.source, colour=colourful(sys.stdout)))
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


def edit_lines() -> None:
    """Let input() edit lines of any length, with a history; a paste that the terminal marks is one line."""
    with contextlib.suppress(ImportError):  # some builds of Python lack it
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")


def more_waits(seconds: float) -> bool:
    """Whether stdin, a terminal, has a line to read within so many seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def read_question(prompt: str) -> str:
    """The next line of stdin. From a terminal the lines that arrive together, which are a paste, unless they
    were typed during the last answer. Raises EOFError, UnicodeError."""
    typed = not sys.stdin.isatty() or more_waits(0)
    lines = [input(prompt)]
    while not typed and more_waits(PASTE):
        lines.append(input())
    text = "\n".join(lines).removeprefix("\ufeff").strip()
    text.encode()  # a byte that is no text may have been let through as half a character
    return text


def converse(chat: Chat) -> None:
    """Read questions until the end of input. Raises UsageError where a file or pipe is not UTF-8."""
    screen = Screen()
    if screen.colour:
        edit_lines()
        print("ask, or type /help")
    while True:
        try:
            line = read_question("> " if screen.colour else "")
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
        if line.startswith("/") and "\n" not in line:  # several lines are a paste, which is a question
            if not command(line, chat):
                return
        elif line:
            try:
                answer(chat, screen, line)
            except UsageError as error:  # the conversation is too long, say: /reset may help
                print(error)


def only_question(prompt: str) -> str:
    """The question of --prompt. Raises UsageError for an empty one, and for one that is not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode() if prompt == "-" else prompt
        text.encode()
    except UnicodeError:
        raise UsageError(f"--prompt {prompt!r}: expected a question in UTF-8") from None
    if not (text := text.removeprefix("\ufeff").strip()):
        raise UsageError(f"--prompt {prompt!r}: expected a question, found none")
    return text


def main() -> None:
    cfg = config.parse(Config, __doc__, first=("model", "prompt", "protocol"))
    if get_protocol(cfg.protocol).follow_up:
        raise UsageError(f"--protocol {cfg.protocol}: in a conversation the next question is yours; use r1ci")
    question = None if cfg.prompt is None else only_question(cfg.prompt)
    model, tokenizer = load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed)
    with open_sandbox(cfg, cfg.timeout) as sandbox:
        environment = make_environment(cfg, cfg, tokenizer, sandbox, skip_ungraded=True)
        chat = Chat(model, environment, cfg)
        if question is not None:
            answer(chat, Screen(), question)
        else:
            converse(chat)


if __name__ == "__main__":
    config.run(main)
