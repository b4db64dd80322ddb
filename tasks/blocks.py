"""Where the programs in a model's text begin and end: one scanner for sampling, SFT data and grading.

    turn = Turn(PROTOCOLS["r1ci"], start=0)
    turn.feed(b"Try:\n```py\nprint(6"), turn.feed(b" * 7)\n```")    # False, True
    turn.program                                                      # "print(6 * 7)"

A fenced block opens with a line that holds ```python, ```py or ```python3 alone, in any case; blanks around
them are allowed. A tag such as <code> opens a block anywhere, and a fence of any spelling inside it is taken
off. An opening line that is written twice opens one block.

A block closes at its fence or its closing tag outside Python's strings and comments. In a comment, and in a
string that does not end on its line, it closes where the fence or the tag ends the line; the tag closes it
anywhere in a comment. A triple-quoted string that never ends keeps the block open: before the end of the text
nothing tells whether it will.
"""

import bisect
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.protocols import Protocol

_PYTHON = rb"(?i:python|py)(?:3(?:\.\d+)?)?"
_OPENING = re.compile(rb"([ \t]*)(`{3,})[ \t]*%b[ \t\r]*" % _PYTHON)  # a whole line
# What may stand first in a block: the opening line once more, or inside a tag a fence of any spelling.
_AGAIN = re.compile(rb"(`{3,16})[ \t]{0,9}%b[ \t\r]{0,9}\n" % _PYTHON)
_FENCE, _NAME = rb"(`{3,16}|~{3,16})[ \t]{0,9}", rb"[\w.+-]{0,20}[ \t\r]{0,9}"
_INNER = re.compile(rb"%b(?:%b\n|(?:%b(?![\w(.=]))?[ \t]*)" % (_FENCE, _NAME, _PYTHON))
_HALF = re.compile(rb"(?:`{0,2}|~{0,2}|%b%b)\Z" % (_FENCE, _NAME))

# Where the scanner is in a block. In a string, the state is its quotation mark.
_CODE, _COMMENT, _BEHIND = b"code", b"#", b"behind the inner fence"


@functools.cache
def _marks(state: bytes, fence: bytes, tag: bytes) -> re.Pattern:
    """The marks that matter in a state; as group `half`, a part of one at the text's end."""
    found = {
        _CODE: [b'"""', b"'''", fence, tag, b'"', b"'", b"#"],
        _COMMENT: [b"\n", tag],
        _BEHIND: [tag],
    }.get(state, [state] if len(state) == 3 else [state, b"\n"])
    halves = {mark[:k] for mark in found for k in range(1, len(mark))}
    half = [re.escape(part) for part in sorted(halves, key=len, reverse=True)]
    whole = [re.escape(mark) for mark in found if mark]
    if state[:1] in b"\"'":
        half, whole = [rb"\\\r?", *half], [rb"\\\r?[\s\S]", *whole]
    return re.compile(rb"(?P<half>(?:%b)\Z)|%b" % (b"|".join(half) or b"(?!)", b"|".join(whole)))


class Turn:
    """One turn of the model: from the prompt or a result to the end of its first code block.

    feed() finds the marks across token borders; it scans every byte once. A token is never cut: what follows
    the closing mark inside it stays, and `blocks` has more than one entry if it holds another block.
    """

    def __init__(self, protocol: "Protocol", start: int):
        self.start = start  # index of the turn's first token in the episode
        self.text = bytearray()
        self.ends: list[int] = []  # where each token ends, in bytes of text
        self.blocks: list[tuple[int, int, str]] = []  # of each closed block: start, end, program
        self.opened: int | None = None  # start of a block that is not closed
        self._open, self._tag = protocol.open.encode(), protocol.close.strip().encode()
        self._fenced = protocol.open.startswith("```")
        self._scan = self._words if protocol.open else lambda: False
        self._at = self._line = 0  # where the scan goes on; where the line begins

    def feed(self, piece: bytes) -> bool:
        """Add a token's bytes; True when they complete a code block, which is then in `program`."""
        self._add(piece)
        self.ends.append(len(self.text))
        return bool(self.blocks)

    @property
    def program(self) -> str | None:
        """The program of the first code block."""
        return self.blocks[0][2] if self.blocks else None

    @property
    def block_start(self) -> int:
        """Index in the episode of the token in which the first code block begins."""
        return self.start + bisect.bisect_right(self.ends, self.blocks[0][0])

    def _add(self, piece: bytes) -> None:
        self.text += piece
        while self._scan():
            pass

    def _words(self) -> bool:
        """Scan to the next opening mark; False, as in the other scans: it takes more text to go on."""
        mark = b"\n" if self._fenced else self._open
        found = self.text.find(mark, self._at)
        if found < 0:
            self._at = max(self._at, len(self.text) - len(mark) + 1)
            return False
        self._at = found + len(mark)
        if self._fenced:
            line = _OPENING.fullmatch(self.text, self._line, found)
            self._line = self._at
            if line is None:
                return True
            found, self._fence, tag, self._indent = line.end(1), line[2], b"", len(line[1])
        else:
            self._fence, tag, self._indent = b"", self._tag, 0
        self.opened, self._body, self._closing, self._end = found, self._at, tag, None
        self._scan = self._top
        return True

    def _top(self) -> bool:
        """Take off what may stand first in a block."""
        blanks = b" \t" if self._fenced else b" \t\r\n"
        while self._at < len(self.text) and self.text[self._at] in blanks:
            self._at += 1
        if _HALF.match(self.text, self._at):
            return False
        first = (_AGAIN if self._fenced else _INNER).match(self.text, self._at)
        if first:
            self._indent = self._at - max(self._body, self.text.rfind(b"\n", self._body, self._at) + 1)
            self._fence, self._body, self._at = first[1], first.end(), first.end()
        self._state, self._scan = _CODE, self._code
        return True

    def _code(self) -> bool:
        """Scan to the next mark inside the block, as Python's tokenizer reads strings and comments."""
        found = _marks(self._state, self._fence, self._closing).search(self.text, self._at)
        if found is None or found["half"]:
            self._at = found.start() if found else len(self.text)
            return False
        start, self._at, mark = found.start(), found.end(), found[0]
        if self._state in (_CODE, _COMMENT, _BEHIND) and mark in (self._fence, self._closing):
            self._close(start, mark)
        elif self._state == _CODE:
            self._state, self._line = mark, start  # where the comment or the string begins
        elif mark == b"\n":
            line = self.text[self._line : start].rstrip(b" \t\r")
            self._state = _CODE
            for mark in filter(None, (self._fence, self._closing)):
                if line.endswith(mark):
                    self._at = self._line + len(line)
                    self._close(self._at - len(mark), mark)
                    break
        elif mark == self._state:
            self._state = _CODE
        return True

    def _close(self, start: int, mark: bytes) -> None:
        """End the program, and the block unless a closing tag is still to come."""
        self._end = start if self._end is None else self._end
        if self._closing and mark == self._fence:
            self._state = _BEHIND
            return
        program = self.text[self._body : self._end].decode(errors="replace")
        if self._indent:
            program = re.sub(rf"(?m)^[ \t]{{1,{self._indent}}}", "", program)
        whole = program.rstrip(" \t\r\n")
        program = (whole + re.split(r"\r?\n", program[len(whole) :], maxsplit=1)[0]).lstrip("\r\n")
        self.blocks.append((self.opened, self._at, program))
        self.opened, self._scan = None, self._words
        self._line = start - 1  # the rest of this line opens nothing


@dataclass(frozen=True)
class Part:
    """Words, the code block after them, and its program. The block is empty at the text's end; the program is
    None there, and where the block is not closed."""

    words: str
    block: str = ""
    program: str | None = None


def split_code(text: str, protocol: "Protocol") -> Iterator[Part]:
    """The text cut at its code blocks.

    >>> list(split_code("So:\\n```py\\n1\\n```\\nOne", PROTOCOLS["r1ci"]))
    [Part(words='So:\\n', block='```py\\n1\\n```', program='1'), Part(words='\\nOne', block='', program=None)]
    """
    turn = Turn(protocol, 0)
    turn.feed(text.encode(errors="surrogatepass"))
    blocks = [*turn.blocks]
    if turn.opened is not None:
        blocks.append((turn.opened, len(turn.text), None))
    at = 0
    for start, end, program in blocks:
        words, block = turn.text[at:start], turn.text[start:end]
        yield Part(words.decode(errors="surrogatepass"), block.decode(errors="surrogatepass"), program)
        at = end
    if not blocks or blocks[-1][2] is not None:
        yield Part(turn.text[at:].decode(errors="surrogatepass"))
