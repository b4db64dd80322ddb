"""A model behind an OpenAI-compatible HTTP address: single answers, and conversations with our interpreter.

    with Endpoint("http://localhost:8000/v1", "teacher") as endpoint:
        reply = endpoint.complete([{"role": "user", "content": "2 + 3?"}], max_tokens=64, temperature=0.6)
        exchange = converse(endpoint, question, Environment(None, get_protocol("r1ci"), sandbox))

The key comes from the environment variable ABACUS_API_KEY; without it none is sent. No message shows it.
Retries: see plumbing/http.py. A field of the request that a server refuses is renamed or left out by
--url-fields; a reply that it filters or refuses has the finish "refused".
"""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from episode import Call, Finish
from plumbing.config import UsageError, option
from plumbing.http import Caller, CallError, Unusable
from rollout import Environment
from sandbox import Result
from tasks import Protocol, output
from tasks.blocks import split_code

KEY = "ABACUS_API_KEY"
FIELDS = ("max_tokens", "temperature", "top_p", "stop")  # of a request, which some servers refuse
REFUSED = (400, 413, 422)  # HTTP statuses about this question alone: too long, filtered
FILTERED = re.compile(
    "filter|refus|safety|sensitive|block|prohibit|recitation", re.IGNORECASE
)  # finish reasons


@dataclass(frozen=True)
class EndpointOptions:
    """A model behind HTTP."""

    url: str | None = option(
        None,
        "OpenAI-compatible address, before /chat/completions; environment: ABACUS_API_KEY, https_proxy",
    )
    url_fields: str = option(
        "",
        "request fields that the server names otherwise or refuses, such as "
        "max_tokens=max_completion_tokens,temperature=,stop=",
    )


def renamed(fields: str) -> dict[str, str]:
    """The server's names of request fields, "" for those to leave out, from --url-fields. Raises UsageError.

    >>> renamed("max_tokens=max_completion_tokens,stop=")
    {'max_tokens': 'max_completion_tokens', 'stop': ''}
    """
    names = {}
    for part in filter(None, map(str.strip, fields.split(","))):
        ours, equals, theirs = part.partition("=")
        if ours not in FIELDS or not equals or not re.fullmatch(r"\w*", theirs):
            raise UsageError(f"--url-fields {part}: expected FIELD=NAME or FIELD=, of {', '.join(FIELDS)}")
        names[ours] = theirs
    return names


@dataclass(frozen=True)
class Reply:
    """The model's message. `finish` is the server's word ("stop", "length", ...), "refused" where it kept an
    answer back; the tokens are the server's counts, None where it gives none."""

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """One model at one address; thread-safe. Raises UsageError for an impossible address or key."""

    def __init__(
        self,
        url: str,  # without /chat/completions
        model: str,
        *,
        fields: str = "",  # --url-fields
        timeout: float = 600.0,  # seconds for one answer; long ones take minutes
        retries: int = 6,  # tries after the first; with their pauses 30 to 60 s
        workers: int = 16,  # threads of submit()
        sleep: Callable[[float], None] | None = None,  # for tests
    ):
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(f"{KEY}: the environment's key has characters that no key has; set it anew")
        if url.rstrip("/").endswith("/chat/completions"):
            raise UsageError(f"--url {url}: expected the address without /chat/completions")
        self._names = renamed(fields)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        options = {"headers": headers, "secret": key, "timeout": timeout, "retries": retries, "sleep": sleep}
        self._caller = Caller(url, "/chat/completions", flag="--url", **options)
        self._pool = ThreadPoolExecutor(workers, "endpoint")
        self.model, self.has_key = model, bool(key)
        self.prompt_tokens = self.completion_tokens = 0  # of the replies that have a count
        self.uncounted = 0  # replies without

    @property
    def requests(self) -> int:
        """Requests that were answered."""
        return self._caller.calls

    @property
    def retries(self) -> int:
        """Tries beyond the first, of all requests."""
        return self._caller.retried

    def complete(
        self,
        messages: Sequence[dict],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Reply:
        """The model's answer to messages with role and content; it ends before the first of the strings
        `stop`. Raises CallError, one line with the reason."""
        wanted = {"max_tokens": max_tokens, "temperature": temperature}
        wanted |= ({"top_p": top_p} if top_p != 1 else {}) | ({"stop": list(stop)} if stop else {})
        wanted = {self._names.get(name, name): value for name, value in wanted.items()}
        wanted.pop("", None)
        try:
            reply = self._caller.call({"model": self.model, "messages": list(messages), **wanted}, read_reply)
        except CallError as error:
            raise CallError(f"{error}{self._advice(error, wanted)}", error.status) from None
        with self._caller.lock:
            self.prompt_tokens += reply.prompt_tokens or 0
            self.completion_tokens += reply.completion_tokens or 0
            self.uncounted += None in (reply.prompt_tokens, reply.completion_tokens)
        return reply

    def _advice(self, error: CallError, wanted: dict) -> str:
        """What to do about a refusal, where that is known."""
        if error.status == 401:
            sent = "the key was refused" if self.has_key else "no key was sent"
            return f"; {sent}: set {KEY} in the environment"
        if error.status in (404, 405) and not re.search(r"/v\d", self._caller.url):
            return f"; most servers answer below /v1: --url {self._caller.url}/v1"
        named = next((name for name in wanted if re.search(rf"\b{name}\b", str(error))), None)
        if error.status in REFUSED and named in FIELDS:
            return f"; --url-fields {named}= leaves it out, --url-fields {named}=NAME renames it"
        return ""

    def submit(self, function: Callable, *args, **kwargs) -> Future:
        """The future of function(*args, **kwargs) on one of `workers` threads."""
        return self._pool.submit(function, *args, **kwargs)

    def cost(self) -> str:
        """Requests and tokens so far, for people. Tries without an answer may have cost more tokens."""
        tokens = f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written"
        if self.uncounted:
            tokens += f"; {self.uncounted:,} answers came without a count, theirs are unknown"
        return f"{self.requests:,} requests answered, {self.retries:,} tries repeated; {tokens}"

    def close(self) -> None:
        """End the requests in progress, which raise CallError, and cancel those that wait."""
        self._caller.close()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_reply(answer: object) -> Reply:
    """A Reply from a chat completion. Raises Unusable."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise Unusable(f"no answer in the answer: {answer}")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    if not all(isinstance(part, dict) for part in parts):
        raise Unusable(f"expected a text or its parts, found {content}")
    texts = [part.get("text") for part in parts if part.get("type") in ("text", "output_text")]
    if not all(isinstance(text, str) for text in texts):
        raise Unusable(f"expected a text, found {content}")
    finish = str(first.get("finish_reason"))
    refused = message.get("refusal") or any(part.get("type") == "refusal" for part in parts)
    if refused or FILTERED.search(finish):
        finish = Finish.REFUSED
    usage = answer.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    return Reply("".join(texts), finish, *counts)


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None


@dataclass
class Exchange:
    """A conversation. `messages` are those of a trajectory: user, assistant, and tool with a result as
    `output` writes it. `finish` is as in Episode; with "sandbox", `failed` says why."""

    messages: list[dict]
    calls: list[Call] = field(default_factory=list)
    finish: str = ""
    prompt_tokens: int | None = 0  # of all requests together; None: the server does not count
    completion_tokens: int | None = 0
    failed: Result | None = None

    @property
    def text(self) -> str:
        """The model's own text: only this may hold its answer."""
        return "\n".join(m["content"] for m in self.messages if m["role"] == "assistant")

    def count(self, reply: Reply) -> None:
        """Add a reply's tokens."""
        for name in ("prompt_tokens", "completion_tokens"):
            both = getattr(self, name), getattr(reply, name)
            setattr(self, name, None if None in both else sum(both))

    def hear(self, text: str, heard: str, shown: str) -> list[dict]:
        """Append the interpreter's answer to `text`. Returns the two messages as the server reads them."""
        self.messages.append({"role": "tool", "content": heard})
        return [{"role": "assistant", "content": text}, {"role": "user", "content": shown.strip()}]


def converse(
    endpoint: Endpoint,
    question: str,
    environment: Environment,
    *,
    temperature: float = 0.6,
    top_p: float = 1.0,
) -> Exchange:
    """A question answered with the interpreter, as in rollout(): a message ends with its first code block,
    whose program runs, and its output is the user's next message.

    limits.max_tokens is for all messages together, by the server's count; for each message where the server
    does not count. Text after a code block is cut, and counted; the result says so where another block is in
    it. Raises CallError, and UsageError for a protocol with a follow-up question.
    """
    protocol, limits = environment.protocol, environment.limits
    if protocol.follow_up:
        raise UsageError(
            f"--protocol {protocol.name}: it asks in the midst of an answer, which cannot be done through "
            f"--url; expected r1ci, retool, tir, text, cot or code"
        )
    exchange = Exchange([{"role": "user", "content": question}])
    system, user = protocol.opening(question, environment.system, environment.template)
    said = [] if system is None else [{"role": "system", "content": system}]
    said.append({"role": "user", "content": user})
    options = {"temperature": temperature, "top_p": top_p}
    if mark := protocol.before.strip():
        options["stop"] = [mark]  # a model need not go on after results that it makes up
    while not exchange.finish:
        left = limits.max_tokens - (exchange.completion_tokens or 0)
        if left <= 0:
            exchange.finish = Finish.LENGTH
            break
        reply = endpoint.complete(said, max_tokens=left, **options)
        exchange.count(reply)
        text, program, more = first_block(reply.text, protocol)
        exchange.messages.append({"role": "assistant", "content": text})
        if reply.finish == Finish.REFUSED:
            exchange.finish = Finish.REFUSED
        elif program is None:
            exchange.finish = Finish.LENGTH if reply.finish == "length" else Finish.STOP
        elif len(exchange.calls) >= limits.max_calls:
            exchange.finish = Finish.CALLS
        else:
            result = environment.sandbox.run(protocol.to_run(program), limits.timeout)
            if result.status == "sandbox_error":
                exchange.failed, exchange.finish = result, Finish.SANDBOX
                break
            exchange.calls.append(Call(program, result, start=0))
            shown = environment.show(result, only_first=more)
            said += exchange.hear(text, output(result), shown)
    return exchange


def first_block(text: str, protocol: Protocol) -> tuple[str, str | None, bool]:
    """The message up to the end of its first code block, the program, and whether another block follows; the
    whole message and None without a program."""
    first, *rest = split_code(text, protocol)
    more = any(part.block for part in rest)
    return (text, None, False) if first.program is None else (first.words + first.block, first.program, more)
