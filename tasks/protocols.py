"""Protocols: system prompt, markers of code and of results, and format of the final answer.

    r1ci     R1-Code-Interpreter (2505.21668): ```python blocks, `Code Execution Results:`, <<<answer>>>
    retool   ReTool (2504.11536): <code> blocks, <interpreter> results, \\boxed{} inside <answer>
    text     the answer format of r1ci; code is not run (the papers' text-only baseline)
    code     r1ci with the first code block already opened, so that code is always used
    guided   r1ci, and after the answer one follow-up question: check it with a program if there was none, in
             words if there was one. The fourth mode in R1-Code-Interpreter's curriculum; there the guide is a
             trained model, here its questions are fixed.

The system prompts are ours, the markers are the papers'.
"""

import bisect
import re
from dataclasses import dataclass, replace

from isolation.result import Result

NOTICE = "The limit of programs is reached; this one was not run. Give the final answer now."


@dataclass(frozen=True)
class Protocol:
    """One format of talking to the interpreter. An empty `open` means that no code is run."""

    name: str
    system: str  # the system prompt
    open: str  # start of a code block
    close: str  # end of a code block; sampling pauses there
    before: str  # before the interpreter's output
    after: str  # after it
    answer: str  # format of the final answer, {} stands for its content
    prefill: str = ""  # start of the assistant's first message, part of the prompt
    follow_up: tuple[str, str] | None = None  # question after the answer: without a program so far, with one

    def code(self, text: str) -> str:
        """The program in a code block. text: everything between `open` and `close`."""
        fenced = re.search(r"```python\n(.*?)(?:\n```[ \t]*(?:\n|\Z)|\Z)", text, re.DOTALL)
        return (fenced.group(1) if fenced else text).strip("\n")

    def block(self, program: str) -> str:
        """The program as a code block, the inverse of `code`."""
        fence = "" if self.open.startswith("```") else "\n```python"
        end = "" if self.close.endswith("```") else "\n```"
        return f"{self.open}{fence}\n{program.strip()}{end}{self.close}"

    def wrap(self, text: str, limit: int = 1000) -> str:
        """The interpreter's text between `before` and `after`. Beyond `limit` characters its middle is left
        out."""
        text = text.strip("\n")
        if len(text) > limit:
            head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
            text = f"{head}\n... ({len(text) - len(head) - len(tail)} characters left out) ...\n{tail}"
        return f"{self.before}{text}\n{self.after}"


def output(result: Result) -> str:
    """The text of a result that the model reads: the program's output, and its error if it failed. Raises
    ValueError for a sandbox_error, which is not the model's failure."""
    if result.status == "sandbox_error":
        raise ValueError(f"not to be shown to a model, the program was not run: {result.stderr}")
    if result.status == "ok":
        return result.stdout
    if result.status == "timeout":
        return f"{result.stdout}\nTimeoutError: stopped after {result.wall:.0f} s"
    if result.status == "output":
        return f"{result.stdout}\nOSError: too much output, stopped"
    if result.status == "signal":
        return f"{result.stdout}{result.stderr}\nKilled by signal {result.signal}"
    return result.stdout + result.stderr


_PYTHON = (
    "Whenever a program is the better tool, for searching, counting or computing, write Python in a block "
    "that begins with {} and ends with {}. Write one complete script at a time, print what you need, and "
    "stop after the block: it is run for you and its output or error comes back. "
    "You may do this several times. "
)
_ANSWER = "Finish with the final answer as <<<answer>>>."

R1CI = Protocol(
    name="r1ci",
    system="Solve the question. Reason first. " + _PYTHON.format("```python", "```") + _ANSWER,
    open="```python",
    close="\n```",
    before="\nCode Execution Results:\n",
    after="",
    answer="<<<{}>>>",
)
RETOOL = Protocol(
    name="retool",
    system="Solve the problem step by step. "
    + _PYTHON.format("<code>\n```python", "```\n</code>")
    + "The output is given between <interpreter> and </interpreter>. "
    + "Finish with the final answer as <answer>\n\\boxed{answer}\n</answer>.",
    open="<code>",
    close="\n</code>",
    before="\n<interpreter>\n",
    after="</interpreter>\n\n",
    answer="<answer>\n\\boxed{{{}}}\n</answer>",
)
TEXT = Protocol(
    name="text",
    system="Solve the question by reasoning in words alone; do not write code. " + _ANSWER,
    open="",
    close="",
    before="",
    after="",
    answer="<<<{}>>>",
)
CODE = Protocol(
    name="code",
    system="Solve the question with Python, always. " + _PYTHON.format("```python", "```") + _ANSWER,
    open=R1CI.open,
    close=R1CI.close,
    before=R1CI.before,
    after=R1CI.after,
    answer=R1CI.answer,
    prefill="```python\n",
)
GUIDED = replace(
    R1CI,
    name="guided",
    follow_up=(
        "Check this with a Python program. " + _ANSWER,
        "Check this by reasoning in words, without a program. " + _ANSWER,
    ),
)
PROTOCOLS = {p.name: p for p in (R1CI, RETOOL, TEXT, CODE, GUIDED)}


class Turn:
    """One turn of the model: from the prompt or a result to the end of its first code block.

    feed() finds the code marks across token borders. A token is never cut: what follows the closing mark
    inside it stays.
    """

    def __init__(self, protocol: Protocol, start: int, prefill: str = ""):
        self.protocol, self.start = protocol, start  # start: index of the turn's first token in the episode
        self.text = b""
        self.ends: list[int] = []  # where each token ends, in bytes of text
        self.opened: int | None = None  # where the opening mark begins, in bytes of text
        self.closed: int | None = None  # where the closing mark ends
        self.program: str | None = None
        if prefill:
            self._search(prefill.encode())

    def feed(self, piece: bytes) -> bool:
        """Add a token's bytes; True when they complete a code block, which is then in `program`."""
        self._search(piece)
        self.ends.append(len(self.text))
        return self.program is not None

    def _search(self, piece: bytes) -> None:
        old = len(self.text)
        self.text += piece
        if not self.protocol.open:
            return
        opening, closing = self.protocol.open.encode(), self.protocol.close.encode()
        if self.opened is None:
            found = self.text.find(opening, max(0, old - len(opening) + 1))
            if found < 0:
                return
            self.opened = found
        body = self.opened + len(opening)
        found = self.text.find(closing, max(body, old - len(closing) + 1))
        if found >= 0:
            self.closed = found + len(closing)
            self.program = self.protocol.code(self.text[body:found].decode("utf-8", errors="replace"))

    @property
    def block_start(self) -> int:
        """Index in the episode of the token in which the code block begins."""
        return self.start + bisect.bisect_right(self.ends, self.opened)


_BRACES = re.compile(r'\\boxed\{\s*("[^"\n]*")\s*\}|\\boxed\{|[{}]')


def _last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} with balanced braces, in one pass. In a quoted answer braces are
    text, as in \\boxed{"} )"}."""
    opened, last = [], (-1, None)  # starts of the contents of open braces; (start, content)
    for found in _BRACES.finditer(text):
        if found[1]:
            last = (found.start(1), found[1])
        elif found[0] != "}":
            opened.append((found.end(), found[0] != "{"))
        elif opened:
            start, boxed = opened.pop()
            if boxed and start > last[0]:
                last = (start, text[start : found.start()].strip())
    return last[1]


def extract_answer(text: str, protocol: str | Protocol) -> str | None:
    """The final answer in the model's own text, or None: the last <<<...>>>, for retool the last \\boxed{...}
    (after the last <answer> if there is one). `text` must not contain the interpreter's output.

    >>> extract_answer("first <<<1>>>, no: <<<2>>>", "r1ci")
    '2'
    """
    if getattr(protocol, "name", protocol) == "retool":
        return _last_boxed(text.rsplit("<answer>", 1)[-1])
    found = re.findall(r"<<<((?:(?!<<<).)*?)>>>", text, re.DOTALL)
    return found[-1].strip() if found else None
