r"""A row of a question file as a question and its right answer.

row({"problem": "2+2?", "solution": "so \\boxed{4}"})       Row("2+2?", "4", (), None)

Keys are found by name, in any case. test_rows.py and test_math.py have rows of AIME, MATH-500,
GSM8K, GSM-hard, DAPO-Math-17k, GPQA, MMLU, MMLU-Pro, ARC and MedMCQA.

    question | problem | query | input | prompt | messages       a text, or one user's turn
    system | system_prompt                                       the head prompt
    instruction | context | passage                              a part of the question, before it
    answer | final_answer | output | solution | ...              a value, what follows ####, the last \boxed{}
    choices | options | endings | A, B, C ... | opa, opb ...     with a letter, a number or the text as answer
    Correct Answer, Incorrect Answer 1..3                        the options are shuffled
"""

import ast
import contextlib
import itertools
import json
import math
import re
import string
from decimal import Decimal
from typing import NamedTuple

from tasks.answers import normal
from tasks.files import HALF
from tasks.protocols import extract_answer

QUESTION = ("question", "problem", "query", "input", "prompt", "messages", "conversations")
HEAD = ("system", "system_prompt")
BEFORE = ("instruction", "context", "passage")
ANSWER = ("answer", "final_answer", "expected_answer", "ground_truth", "output", "solution", "target")
ANSWER += ("response", "completion")
OPTIONS = ("choices", "options", "endings")
COLUMNS = [  # a, b, c; opa, opb; option1, option2
    [pattern + label for label in labels]
    for pattern in ("", "op", "option", "option_", "choice", "choice_")
    for labels in (string.ascii_lowercase, string.digits[1:])
]
PLACE = ("answer_index", "answer_idx", "correct_index", "cop")  # a number here counts from 0
RIGHT = (*PLACE, "answerkey", "answer_key", "answer", "final_answer", "label", "correct", "correct_answer")
RIGHT += ("gold", "target", "solution")
CORRECT, INCORRECT = "correct_answer", "incorrect_answer_"
LETTERS = string.ascii_uppercase
NOTHING = ("", "nan", "null", "n/a", "#n/a", "<na>")
BLANK = r"[-–—_?.…\s]*"  # stands for an answer that is not given
WORDS = 8  # of the longest answer in words; a longer text is a solution
USER, ASSISTANT, SYSTEM = ("user", "human"), ("assistant", "gpt", "model"), ("system", "developer")
# what a sentence about the form of an answer begins with, before and behind a question, and what it names
_HEAD = r"(?:Solve|Answer|Please|Below|Given|You|Here|Read|Consider) "
_TAIL = r"(?:Let's think|Please|Think|Remember|Put|Output|Write|Place|Present|Provide|The last line|Your) "
_FORM = r"\\boxed|####|Answer:|<answer>|own line|last line"
_SAYS = re.compile(
    r"\b(?:final |right |correct )?answer(?: is\b|:)\s*:?\s*(.+?)\s*\Z", re.IGNORECASE | re.DOTALL
)


class Row(NamedTuple):
    """A question; the right answer, a text; the options; the row's own head prompt. Without options it is a
    question with a free answer. `fixed`: the options keep their order."""

    question: str
    answer: str
    options: tuple[str, ...] = ()
    system: str | None = None
    fixed: bool = True


def row(record: object) -> Row:
    """The row of a record. Raises ValueError with the record's fault."""
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; expected an object with a question and an answer")
    keys = {_name(str(key)): value for key, value in record.items() if value is not None}
    question, system, said = _question(keys)
    wrong = [v for k, v in sorted(keys.items()) if re.fullmatch(INCORRECT + "[0-9]+", k)]
    if CORRECT in keys and wrong:
        options = [keys[CORRECT], *wrong]
        options = _checked([str(option or "").strip() for option in options])
        found = Row(question, options[0], options, system, fixed=False)
    elif options := _options(keys):
        found = Row(question, *_chosen(keys, *options), system)
    else:
        found = Row(question, _answer(keys, said), (), system)
    if any(HALF.search(text) for text in (*found[:2], *found.options, system or "")):
        raise ValueError("half a surrogate pair, which is no character; expected Unicode text")
    return found


def _name(key: str) -> str:
    """The name of a column: "Final Answer", "final-answer" and "finalAnswer" are final_answer."""
    key = re.sub("(?<=[a-z])(?=[A-Z][a-z])", "_", key.strip())
    return re.sub(r"[\s_-]+", "_", key).lower()


def _parsed(value: object) -> object:
    """The list or object that a text holds, as in a CSV; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(value.strip())
    return value


# -- the question ----------------------------------------------------------------------------------


def _question(keys: dict) -> tuple[str, str | None, str | None]:
    """The question; the head prompt and the assistant's text of a list of messages, where it has them."""
    found = next((keys[name] for name in QUESTION if not _empty(keys.get(name))), None)
    system, said = next((keys[n].strip() for n in HEAD if isinstance(keys.get(n), str)), "") or None, None
    listed = _parsed(found)
    if isinstance(listed, list) and (listed is found or _of_messages(listed)):
        found, first, said = _messages(listed)
        if system and first:
            raise ValueError("a head prompt in the row and one in its messages; expected one of them")
        system = system or first
    before = [keys[name].strip() for name in BEFORE if isinstance(keys.get(name), str)]
    if isinstance(found, dict) and isinstance(found.get("stem"), str):  # {"stem": ..., "choices": [...]}
        found = found["stem"]
    if not isinstance(found, str):
        found = "" if found is None and any(before) else None
    if found is None or not (text := "\n\n".join(filter(None, [*before, unwrapped(found)]))):
        expected = f"expected text as {' | '.join(QUESTION)}"
        raise ValueError(f"no question; keys are {', '.join(keys)}, {expected}")
    return text, system, said


def _of_messages(found: list) -> bool:
    return bool(found) and all(isinstance(m, dict) and {"content", "value"} & m.keys() for m in found)


def _messages(messages: list) -> tuple[str, str | None, str | None]:
    """(the user's text, the system's, the assistant's) of a list of messages with one user's turn."""
    texts: dict[tuple, str] = {}
    for message in messages:
        message = message if isinstance(message, dict) else {}
        role = message.get("role") or message.get("from") or "user"
        content = message.get("content", message.get("value"))
        kind = next((kind for kind in (USER, ASSISTANT, SYSTEM) if role in kind), None)
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
        if kind is None or kind in texts or not isinstance(content, str):
            raise ValueError(
                "messages that are no question; expected one text of the user, of the system too"
            )
        texts[kind] = content
    if not texts.get(USER, "").strip() or list(texts) != [k for k in (SYSTEM, USER, ASSISTANT) if k in texts]:
        raise ValueError("messages without a question; expected one text of the user, after the system's")
    return texts[USER], texts.get(SYSTEM, "").strip() or None, texts.get(ASSISTANT)


def unwrapped(text: str) -> str:
    r"""The question without what other projects put around it to ask for their own form of an answer, such as
    DAPO's two sentences.

    >>> unwrapped("2+2?\n\nRemember to put your answer on its own line after \"Answer:\".")
    '2+2?'
    """
    text = text.strip()
    head, *rest = re.split(r"\n\s*\n", text, maxsplit=1)
    if rest and re.match(_HEAD, head) and _about_form(head):
        text = rest[0].strip()
    tails = [found.start() for found in re.finditer(rf"\s(?={_TAIL})", text)]
    if tails and "?" not in text[tails[-1] :] and _about_form(text[tails[-1] :]):
        text = text[: tails[-1]].rstrip() or text
    return text


def _about_form(text: str) -> bool:
    """Whether a text says in which form to answer."""
    return "answer" in text.lower() and bool(re.search(_FORM, text))


# -- a free answer ---------------------------------------------------------------------------------


def _answer(keys: dict, said: str | None) -> str:
    """The right answer, from the first column that holds one. Raises ValueError."""
    reward = _parsed(keys.get("reward_model"))
    columns = {name: keys[name] for name in ANSWER if name in keys}
    if isinstance(reward, dict):
        columns["reward_model.ground_truth"] = reward.get("ground_truth")
    columns |= {} if said is None else {"the assistant's message": said}
    refused = []
    for name, value in columns.items():
        if isinstance(listed := _parsed(value), list) and len(listed) == 1:
            plain = isinstance(listed[0], str) and listed[0].isprintable()  # \f of \frac may be an escape
            value = listed[0] if plain or listed is value else value
        if _empty(value) or isinstance(value, str) and re.fullmatch(BLANK, value.strip()):
            refused.append(f"{name} is empty")
        elif isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
            refused.append(f"{name} is no text or number")
        elif found := final(str(value)):
            return found
        else:
            refused.append(
                f"{name} is a text without \\boxed{{}} or ####: {' '.join(str(value).split()):.40}"
            )
    if refused:
        raise ValueError(f"no answer: {', '.join(refused)}; expected a value, or a solution with \\boxed{{}}")
    expected = f"{' | '.join(ANSWER)} or reward_model.ground_truth"
    raise ValueError(f"no answer; keys are {', '.join(keys)}, expected text or a number as {expected}")


def _empty(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, infinity, or a text that stands for them."""
    if isinstance(value, (float, Decimal)):
        return not math.isfinite(value)
    return value is None or isinstance(value, str) and value.strip().lower() in NOTHING


def final(text: str) -> str | None:
    r"""The final answer of a solution: the line after the last "####", the last \boxed{}, what "the answer
    is" says at its end, or the whole text. None for sentences without any of them.

    >>> final("6*7=42\n#### 42"), final("So it is \\boxed{42}."), final("We add them, and get 42.")
    ('42', '42', None)
    """
    if "####" in text:
        return next(iter(text.rsplit("####", 1)[1].strip().splitlines()), "").strip() or None
    if "\\boxed" in text or "\\fbox" in text:
        return extract_answer(text, "retool") or None
    says = _SAYS.search(text.strip())
    text = says[1].strip().removesuffix(".") if says else text.strip()
    return None if _free(text) else text


def _free(text: str) -> bool:
    """Whether a text is no answer but sentences: many words, a full stop, or a conclusion. Formulas are no
    words."""
    says = r"\b(?:therefore|thus|hence|we (?:get|have|find|obtain))\b|\w (?:is|are|equals) \$?[-\d\\]"
    concludes = re.search(says, text, re.IGNORECASE)
    text = re.sub(r"\$[^$]*\$|\\[A-Za-z]+", " ", text)
    words = [re.findall(r"[^\W\d_]{2,}", sentence) for sentence in re.split(r"[.!?](?:\s+|\Z)|\n", text)]
    # "The triangle is equilateral", but not "x is even"
    says = re.search(r"[^\W\d_]{2,}\s+(?:is|are|was|were|equals|has|have)\s+\S", text)
    stops = len(words) > 1 and len(words[0]) > 1 and sum(map(len, words)) > 2
    return bool(concludes or says) or stops or sum(map(len, words)) > WORDS


# -- multiple choice -------------------------------------------------------------------------------


def _options(keys: dict) -> tuple[list, list[str]] | None:
    """(options, labels) of a row, the labels [] where it names none; None without options."""
    nested = keys.get("question") if isinstance(keys.get("question"), dict) else {}
    found = next((v for k in OPTIONS if not _empty(v := keys.get(k, nested.get(k)))), None)
    found = _parsed(found)
    if isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
        names = ("label", "id", "key", "letter")
        name = next((name for name in names if all(each.get(name) is not None for each in found)), "label")
        labels = [each.get(name) for each in found]
        labels = [] if labels == [None] * len(found) else labels
        found = {"text": [each.get("text", each.get("content")) for each in found], "label": labels}
    if isinstance(found, dict) and isinstance(found.get("text"), list):  # ARC
        labels = found.get("label") if isinstance(found.get("label"), list) else []
        return found["text"], [str(label) for label in labels]
    if isinstance(found, dict):
        found = {str(label): text for label, text in found.items() if not _empty(text)}
        return list(found.values()), list(found)
    if isinstance(found, list):
        return found, []
    if found is not None:
        raise ValueError(f"options are {str(found)[:40]!r}; expected a list")
    for names in COLUMNS:
        if _empty(keys.get(names[0])) or _empty(keys.get(names[1])):
            continue
        named = list(itertools.takewhile(lambda name: not _empty(keys.get(name)), names))
        # columns a and b may be numbers of the question; the answer B tells that they are options
        if len(names[0]) > 1 or any(str(keys.get(name)).strip("() .").lower() in named for name in RIGHT):
            return [keys[name] for name in named], [name[-1] for name in named]
    return None


def _chosen(keys: dict, options: list, labels: list[str]) -> tuple[str, tuple[str, ...]]:
    """(the right option, all options). Letters that stand in all options, as in "A) 5", are taken off.
    Columns that name the right option must all name the same one. Raises ValueError."""
    texts = ["" if _empty(option) else str(option).strip() for option in options]
    inside = [re.match(r"\(?([A-Z])[).:]\s*(?=\S)", text) for text in texts]
    if all(inside) and [found[1] for found in inside] == list(LETTERS[: len(inside)]):
        texts = [text[found.end() :] for text, found in zip(texts, inside, strict=True)]
    checked = _checked(texts)
    if labels and len(labels) != len(texts):
        raise ValueError(f"{len(texts)} options and {len(labels)} labels; expected as many")
    labels = [label.strip().lower() for label in labels]
    # numbers as options, or a CSV: 2 may be the option's text or its place
    unclear = not all(isinstance(option, str) for option in options) or any(
        isinstance(keys.get(name), str) for name in OPTIONS
    )
    found: dict[str, int] = {}
    nested = keys.get("question") if isinstance(keys.get("question"), dict) else {}
    for name in RIGHT:
        value = keys.get(name, nested.get(name))
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if _empty(value) or isinstance(value, (bool, list, dict)):
            continue
        places = {_by_number(value, texts)} if name in PLACE else set()
        places = places - {None} or _places(value, texts, labels, unclear)
        if len(places) > 1:
            raise ValueError(f"{name} is {value!r}, which names more than one of {str(options)[:60]}")
        if places:
            found[name] = places.pop()
    if len(set(found.values())) != 1:
        said = ", ".join(f"{name} is {str(keys[name])[:40]!r}" for name in found or RIGHT if name in keys)
        raise ValueError(
            f"the right option is not told: {said or 'no answer'}; expected a letter or a number"
        )
    return checked[next(iter(found.values()))], checked


def _checked(options: list[str]) -> tuple[str, ...]:
    """The options as a tuple. Raises ValueError where they are no choice."""
    if not all(options) or not 1 < len(set(options)) == len(options) <= len(LETTERS):
        raise ValueError(
            f"options are {str(options)[:60]}; expected one right and some wrong options, all different"
        )
    return tuple(options)


def _by_number(value: object, options: list[str]) -> int | None:
    """The place that a number from 0 names; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return int(text) if re.fullmatch("[0-9]{1,3}", text) and int(text) < len(options) else None


def _places(value: object, options: list[str], labels: list[str], unclear: bool) -> set[int]:
    """The places of the options that a value may name: by label, else by text, else by a number from 0."""
    text = str(value).strip()
    letter = re.fullmatch(r"\(?(\w+)[).:]?", text)
    label, known = letter[1].lower() if letter else "", labels or list(LETTERS.lower()[: len(options)])
    named = re.match(r"\(?(\w+)[).:]\s*(?=\S)", text)  # "B) y": the label, and the text that it has
    if named and named[1].lower() in known and known.index(named[1].lower()) < len(options):
        place = known.index(named[1].lower())
        if normal(options[place]) == normal(text[named.end() :]):
            return {place}
    by_number = _by_number(value, options)
    by_number = set() if labels or by_number is None else {by_number}
    by_text = {i for i, option in enumerate(options) if normal(option) == normal(text)}
    if label in known:  # the options "B", "A" with the answer A: nobody knows
        return {known.index(label)} | (set() if labels else by_text)
    if unclear:
        return by_text | by_number
    return (by_number or by_text) if not isinstance(value, str) else (by_text or by_number)
