"""Text and ids, who wrote which token, and the chat template.

Two rules keep training honest:

  - encode() is for text that people and tools wrote. What the model wrote stays the ids it sampled: decoding
    and encoding again may give other ids (tests/test_rollout.py shows one).
  - every token gets its Source when it is appended. The loss mask follows from that alone.
"""

import functools
import itertools
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path

import tokenizers

from plumbing.folders import refuse_pointer
from plumbing.template import check_kept, rendered, settings


class Source(IntEnum):
    """Who wrote a token: the prompt, the model, or the interpreter."""

    PROMPT = 0
    POLICY = 1
    TOOL = 2


# The files that save() writes, and those that name the tokens which end a text.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES += ("chat_template.jinja", "vocab.json", "merges.txt")
STOPS = ("generation_config.json", "config.json")

# An added token of this form marks structure, such as <think>; not every folder calls it special.
MARK = re.compile(r"<[^\s<>]+>")


@functools.cache
def byte_of() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, inverted (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """A byte-level BPE and its chat template; `files` are the contents of a checkpoint's files, by name.

    stop_ids end an answer; the first one ends a turn, and so ends a trained answer. pad_id fills batches.
    `opened` is what a prompt already writes of the answer, such as R1-Distill's "<think>\\n".
    Raises ValueError for a damaged file and for a chat template that cannot be followed.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        try:
            self.backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"].removeprefix(BOM_UTF8))
        except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
            raise ValueError(f"tokenizer.json: not a tokenizer ({error})") from None
        # '<|im_end|>' and '<think>' in a question are plain text.
        self.backend.encode_special_tokens = True
        added = self.backend.get_added_tokens_decoder()
        marks = {i: t for i, t in added.items() if not t.special and MARK.fullmatch(t.content)}
        self.backend.add_special_tokens(list(marks.values()))
        self._pieces: dict[int, bytes] = {}

        special = {token.content: i for i, token in added.items() if token.special or i in marks}
        roles = ["system", "user", "assistant", "user"]
        texts = [rendered(files, part) for part in (["user"], roles[:2], roles)]
        prompt, earlier = texts[1][-1], texts[2][2]  # before an answer: the next one, and one of the past
        self.opened = prompt.removeprefix(earlier) if prompt.startswith(earlier) else ""
        self._append_only = prompt == earlier
        one, two, (*turns, start) = ([_split(text, special) for text in part] for part in texts)
        text, *after = turns[-1]
        if text or not after:
            raise ValueError("the chat template (ChatML without one) ends no answer with a special token")
        turn_end, *between = after
        self._first, self._next = {1: one, 2: two}, [between, start]

        self.generation, config = (settings(files, name) for name in STOPS)
        found = [values.get("eos_token_id") for values in (self.generation, config)]
        stop = next((ids for ids in found if ids is not None), [])
        stop = stop if isinstance(stop, list) else [stop]
        if not all(type(i) is int and 0 <= i < self.vocab_size for i in stop):
            place = f"below {self.vocab_size}, in {' or '.join(STOPS)}"
            raise ValueError(f"eos_token_id is {stop}; expected ids of the vocabulary, {place}")
        self.stop_ids = (turn_end, *(i for i in stop if i != turn_end))
        self.pad_id = special.get("<|endoftext|>", turn_end)
        in_turns = {*itertools.chain(*turns), *self.stop_ids, self.pad_id}
        self._marks = {token.content: i for i, token in marks.items() if i not in in_turns}

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint folder."""
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder}: no tokenizer.json; expected the checkpoint's tokenizer")
        for name in FILES:
            if (folder / name).is_file():
                refuse_pointer(folder / name)
        try:
            return cls({n: (folder / n).read_bytes() for n in FILES + STOPS if (folder / n).is_file()})
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files as other tools read them.

        Exception: beside a config.json of type qwen2, AutoTokenizer of transformers 5 replaces the file's
        rules by Qwen2.5's. PreTrainedTokenizerFast.from_pretrained(folder) reads the embedded tokenizer.
        """
        for name in self.files.keys() & set(FILES):
            (Path(folder) / name).write_bytes(self.files[name])

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id plus one; a tokenizer with gaps in its ids has fewer entries."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, text: str, marks: bool = False) -> list[int]:
        """Ids of a text; special tokens and marks like <think> in it are plain text.

        With `marks`, for a text that a model wrote, marks are single tokens, except those of the chat turns.
        """
        if marks:
            return self._fill([_split(text, self._marks)])
        return self.backend.encode(text, add_special_tokens=False).ids

    def _fill(self, segments: Sequence[list[str | int]], texts: Sequence[str] = ()) -> list[int]:
        """Ids of split segments with the texts between them; neighbouring strings are encoded together."""
        parts = [*segments[0]]
        for text, (start, *rest) in zip(texts, segments[1:], strict=True):
            parts[-1] += text + start
            parts += rest
        ids = []
        for part in parts:
            ids += self.encode(part) if isinstance(part, str) else [part]
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b'' for ids beyond the vocabulary (padded embeddings)."""
        if token not in self._pieces:
            text = self.backend.id_to_token(token) or ""
            table = byte_of()
            known = all(c in table for c in text) and token not in self.backend.get_added_tokens_decoder()
            self._pieces[token] = bytes(table[c] for c in text) if known else text.encode()
        return self._pieces[token]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, ids)).decode("utf-8", errors="replace")

    def chat(self, system: str | None, user: str) -> list[int]:
        """Ids of a conversation's first prompt, up to the start of the answer. Without a system prompt, the
        chat template decides on one. No text can imitate the template's special tokens."""
        texts = [user] if system is None else [system, user]
        return self._fill(self._first[len(texts)], texts)

    def follow_up(self, user: str, answer: str = "") -> list[int]:
        """Ids of the next prompt, which follows an answer and its end-of-turn token. Raises NotAppendOnly,
        with both renderings, where the chat template changes the answer, as R1-Distill's drops thoughts."""
        if not self._append_only or "</think>" in answer:
            check_kept(self.files, answer)
        return self._fill(self._next, [user])


def _split(text: str, known: dict[str, int]) -> list[str | int]:
    """The text between known tokens, and their ids: text, id, text, ..., text."""
    parts = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
    return [known[part] if i % 2 else part for i, part in enumerate(parts)]


COLOURS = {Source.PROMPT: "\033[2m", Source.POLICY: "\033[32m", Source.TOOL: "\033[33m"}
MARKS = {Source.PROMPT: "{}", Source.POLICY: "[{}]", Source.TOOL: "({})"}


def printable(text: str) -> str:
    """Text without the control characters that would move a terminal's cursor or change its colours."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def coloured(tokenizer: Tokenizer, tokens: Sequence[int], source: Sequence[int], colour: bool = True) -> str:
    """The sequence as text: the prompt grey, the model's tokens green, the interpreter's yellow. Without
    colours, the model's tokens are in [brackets], the interpreter's in (parentheses). Green is trained."""
    parts = []
    for kind, pairs in itertools.groupby(zip(source, tokens, strict=True), key=lambda pair: pair[0]):
        text = tokenizer.decode(token for _, token in pairs)
        parts.append(f"{COLOURS[kind]}{printable(text)}\033[0m" if colour else MARKS[kind].format(text))
    return "".join(parts)
