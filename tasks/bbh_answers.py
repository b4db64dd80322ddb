"""How answers to BIG-Bench Hard questions are written and read: options, single words, integers, word lists,
closing brackets. A form reads the right answer and the given one alike and compares what they mean.

Read as the same: case, white space, outer quotes, a full stop at the end, bold face or \\text{} around it,
and an opening such as "The answer is" or "Option:". Anything more than one answer is refused.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tasks.answers import normal, number, untypeset, words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PRINT_LETTER = (
    """print(f"({'ABCDEFGH'[options.index(result)]})")"""  # ends the program of a task with options
)
CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_OPENING = re.compile(
    r"(?:the )?(?:final |correct |right )*(?:answer|option|choice)(?: is\b| would be\b)?\s*[:=]?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?:\(([a-z])\)|\[([a-z])\]|([a-z])[).:])(?:[.:]?\s+(.*))?")


def bare(answer: str | None) -> str:
    """The answer without what people put around it: typesetting, "The answer is".

    >>> bare("**Answer: (A)**"), bare("the answer is 7"), bare("options"), bare(None)
    ('(A)', '7', 'options', '')
    """
    text = untypeset(untypeset(answer).removeprefix("**").removesuffix("**"))
    opening = _OPENING.match(text)
    whole = opening and (opening[0][-1:] in " :=\t\n" or text[opening.end() :][:1] in ("", "("))
    return text[opening.end() :].strip() if whole else text


def listed(options: Sequence[str]) -> str:
    """The block of options that ends a question: what Choice reads."""
    return "\n".join(["Options:", *(f"({LETTERS[i]}) {text}" for i, text in enumerate(options))])


def shuffled(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[list[str], str]:
    """Options in random order, and the right one's letter as "(B)"."""
    options = rng.sample([right, *wrong], len(wrong) + 1)
    return options, f"({LETTERS[options.index(right)]})"


class Form(ABC):
    """How an answer is written. `asks` is the sentence that ends the question and says so."""

    asks: str

    @abstractmethod
    def read(self, answer: str | None, question: str) -> Hashable | None:
        """What the answer means, to be compared; None if it is not written in this form."""


@dataclass(frozen=True)
class Choice(Form):
    """One of the lettered options of the question: (B), B, b), "(B) its text", or its text alone where no
    other option has the same. A letter and a text that disagree are refused."""

    asks: str = "Answer with the letter of the right option, such as (B)."

    def read(self, answer: str | None, question: str) -> str | None:
        return self.chosen(answer, self.options(question))

    @staticmethod
    def chosen(answer: str | None, options: dict[str, str]) -> str | None:
        """The small letter of the option that is meant; `options`: letter -> text, as normal() has it."""
        text = normal(bare(answer))
        found = _LETTER.fullmatch(text)
        letter = text if len(text) == 1 else "".join(filter(None, found.groups()[:3])) if found else ""
        if letter in options and (not found or found[4] is None or normal(found[4]) == options[letter]):
            return letter
        texts = {text, normal(answer)} - {""}  # an option's own text may begin with "Answer"
        same = [each for each, option in options.items() if option in texts]
        return same[0] if len(same) == 1 else None

    @staticmethod
    def options(question: str) -> dict[str, str]:
        """Letter -> text of the last block of options, both in small letters."""
        block = question.rpartition("Options:")[2]
        return {letter.lower(): normal(text) for letter, text in re.findall(r"(?m)^\(([A-Z])\)(.*)$", block)}


@dataclass(frozen=True)
class OneOf(Form):
    """One of a few words, such as Yes or No."""

    words: tuple[str, ...]

    @property
    def asks(self) -> str:
        return f"Answer with one word: {' or '.join(self.words)}."

    def read(self, answer: str | None, question: str) -> str | None:
        text = normal(bare(answer))
        return text if text in map(str.lower, self.words) else None


@dataclass(frozen=True)
class Integer(Form):
    """An integer; `units` may follow it and change nothing."""

    units: tuple[str, ...] = ()
    asks: str = "Answer with an integer, in digits."

    def read(self, answer: str | None, question: str) -> int | None:
        value = number(bare(answer), self.units)
        return int(value) if value is not None and value.denominator == 1 else None


@dataclass(frozen=True)
class WordList(Form):
    """Words in the right order, whatever stands between them."""

    asks: str = "Answer with all the words in the right order, separated by spaces."

    def read(self, answer: str | None, question: str) -> tuple[str, ...] | None:
        found = words(bare(answer))
        return tuple(word.lower() for word in found) if found else None


@dataclass(frozen=True)
class ClosingBrackets(Form):
    """Brackets in the right order. Quotes around them are asked for because the answer may end in ">", which
    would run into the mark that ends an answer; they change nothing, and nor do spaces and commas."""

    asks: str = (
        'Answer with the missing brackets only, separated by spaces, in double quotes: such as "] ) >".'
    )

    def read(self, answer: str | None, question: str) -> str | None:
        text = re.sub(r"[\s,'\"`\u2018\u2019\u201c\u201d]", "", bare(answer)).removesuffix(".")
        return text if text and set(text) <= set("()[]{}<>") else None


@dataclass(frozen=True)
class Text(Form):
    """A text as it stands, its case and white space apart."""

    asks: str = "Answer with the text itself."

    def read(self, answer: str | None, question: str) -> str | None:
        return normal(bare(answer)) or None
