"""The official files of BIG-Bench Hard (2210.09261), and the seven tasks that live on their collected text.

`use(folder)` reads NAME.json for all 27 tasks: {"canary": ..., "examples": [{"input": ..., "target": ...}]}.
Official questions are for evaluation first; a question never serves two purposes:

    twenty with rules      evaluation asks the questions of the file, in its order from index 0; supervised
                           data and RL go on with generated ones: no official question is trained on
    seven without (here)   the first half of the file is for evaluation, the third quarter for supervised
                           data, the last for RL; training indices start again where their quarter ends

For the checking of graders, evaluation indices reach the whole file in its order; `size` is where the share
of evaluation ends, and a table of results takes no question beyond it.
"""

import json
import random
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbing.config import UsageError, nearest
from tasks import RL_START, SFT_START, Grade, Problem, Task
from tasks.bbh_answers import Choice, ClosingBrackets, Form, Integer, OneOf, Text, WordList
from tasks.files import HALF

SOURCE = "the folder bbh of the repository suzgunmirac/BIG-Bench-Hard on GitHub"
CHOICE, YES, SMALL_YES = Choice(), OneOf(("Yes", "No")), OneOf(("yes", "no"))
THINGS = ("objects", "items", "things", "animals", "fruits", "vegetables", "musical instruments")
COUNT = Integer(tuple(u for plural in THINGS for u in (plural, plural[:-1])))
FORMS: dict[str, Form] = {
    "boolean_expressions": OneOf(("True", "False")),
    "causal_judgement": YES,
    "date_understanding": CHOICE,
    "disambiguation_qa": CHOICE,
    "dyck_languages": ClosingBrackets(),
    "formal_fallacies": OneOf(("valid", "invalid")),
    "geometric_shapes": CHOICE,
    "hyperbaton": CHOICE,
    "logical_deduction_three_objects": CHOICE,
    "logical_deduction_five_objects": CHOICE,
    "logical_deduction_seven_objects": CHOICE,
    "movie_recommendation": CHOICE,
    "multistep_arithmetic_two": Integer(),
    "navigate": YES,
    "object_counting": COUNT,
    "penguins_in_a_table": CHOICE,
    "reasoning_about_colored_objects": CHOICE,
    "ruin_names": CHOICE,
    "salient_translation_error_detection": CHOICE,
    "snarks": CHOICE,
    "sports_understanding": SMALL_YES,
    "temporal_sequences": CHOICE,
    "tracking_shuffled_objects_three_objects": CHOICE,
    "tracking_shuffled_objects_five_objects": CHOICE,
    "tracking_shuffled_objects_seven_objects": CHOICE,
    "web_of_lies": YES,
    "word_sorting": WordList(),
}


@dataclass(frozen=True)
class Example:
    """One question of an official file."""

    question: str
    target: str


_OFFICIAL: dict[str, list[Example]] = {}  # what use() has read; without it only generated tasks exist


def use(folder: str | Path | None) -> list[str]:
    """Read the official files in `folder` and ask their questions from now on, in this process; None goes
    back to generated questions. To be called once, before questions are drawn (option --bbh).

    Returns the names of the tasks whose file was there, in the order of FORMS; the others stay as they are.
    Raises UsageError if there is no such folder, no file of BBH in it, or a file is damaged.
    """
    _OFFICIAL.clear()
    if folder is None:
        return []
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"--bbh {folder}: no such folder; expected {SOURCE}")
    found = {name: path for name in FORMS if (path := folder / f"{name}.json").is_file()}
    if not found:
        raise UsageError(f"--bbh {folder}: no file such as snarks.json in it; expected {SOURCE}")
    _OFFICIAL.update({name: read(path) for name, path in found.items()})
    return list(found)


def read(path: Path) -> list[Example]:
    """The examples of one official file, whose name says which task it is.
    Raises UsageError naming the file and the first example that is not as expected."""
    if path.stem not in FORMS:
        raise UsageError(f"{path}: {path.stem} is no task of BBH{nearest(path.stem, FORMS)}")
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{path}: {type(error).__name__} {error}; expected {{"examples": [...]}} in JSON'
        ) from None
    if not isinstance(examples, list) or not examples:
        raise UsageError(f'{path}: "examples" is {str(examples)[:40]!r}; expected a list of questions')
    return [_example(path, place, each) for place, each in enumerate(examples)]


def _example(path: Path, place: int, each: object) -> Example:
    fields = [each.get(key) for key in ("input", "target")] if isinstance(each, dict) else []
    good = [isinstance(text, str) and text.strip() and not HALF.search(text) for text in fields]
    if not fields or not all(good):
        raise UsageError(f'{path}, example {place}: {each!r:.60}; expected {{"input": text, "target": text}}')
    question, target = fields
    form = form_of(path.stem, question, target)
    if form.read(target, question) is None:
        raise UsageError(f"{path}, example {place}: target {target!r:.40} is no answer; {form.asks}")
    return Example(question, target)


def form_of(name: str, question: str, answer: str) -> Form:
    """The form of a task's answers. Three official questions (two of ruin_names, one of movie_recommendation)
    took a title with commas for several options; their answer is the title, which no letter stands for."""
    form = FORMS[name]
    return Text() if isinstance(form, Choice) and form.read(answer, question) is None else form


class Official(Task):
    """A task of BBH: its official questions, and its form of answers."""

    suite = "bbh"
    apart = True

    @property
    def examples(self) -> Sequence[Example]:
        """The questions of the official file, in its order; none before use()."""
        return _OFFICIAL.get(self.name, ())

    @property
    def size(self) -> int | None:
        """How many evaluation questions there are; None where they are generated, without end."""
        return len(self.examples) or None

    def official(self, index: int, place: int) -> Problem:
        """Question number `index`: the file's example at `place`. Raises UsageError past its end."""
        if place >= len(self.examples):
            raise UsageError(
                f"{self.name} has {len(self.examples)} official questions; number {place} was asked"
            )
        each = self.examples[place]
        form = form_of(self.name, each.question, each.target)
        return Problem(self.name, index, f"{each.question}\n\n{form.asks}", each.target, {"place": place})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        form = form_of(self.name, problem.question, problem.answer)
        given = form.read(answer, problem.question)
        if given is None:
            found = "no answer given" if not answer else f"{answer!r:.80} cannot be read"
            return Grade(False, f"{found}; {form.asks}")
        right = form.read(problem.answer, problem.question)
        return Grade(given == right, f"{answer!r:.80} given, {problem.answer} expected")


class Collected(Official):
    """A task that only its official file can ask: causes, films, jokes and sports follow no rule."""

    def __init__(self, name: str):
        self.name = name

    @property
    def missing(self) -> str:
        """ "" where the file is there, else what to download."""
        return "" if self.examples else f"{self.name}.json is missing: give --bbh {SOURCE}"

    @property
    def size(self) -> int:
        return len(self.examples) // 2

    def problem(self, index: int) -> Problem:
        if self.missing:
            raise UsageError(f"{self.name}: {self.missing}")
        count = len(self.examples)
        borders = [count // 2, count * 3 // 4, count]
        if index < SFT_START:
            return self.official(index, index)
        quarter, number = (0, index - SFT_START) if index < RL_START else (1, index - RL_START)
        first, end = borders[quarter], borders[quarter + 1]
        if first == end:
            raise UsageError(
                f"{self.name}: its file has {count} questions, too few to train on; see tasks/bbh_files.py"
            )
        return self.official(index, first + number % (end - first))

    def solution(self, problem: Problem) -> None:
        return None


class Generated(Official):
    """A task whose questions follow a rule: drawn from their index, where no official file is used. `draw`
    gives a question without its last sentence, the right answer, and what `program` needs."""

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        """A question, its answer, and the question's data."""

    @abstractmethod
    def program(self, data: dict) -> str:
        """A Python program that prints the answer, from the data of the question."""

    def problem(self, index: int) -> Problem:
        """Drawn again until the question falls into the third of all questions that its purpose owns: no
        question can serve two purposes."""
        if self.examples and index < SFT_START:
            return self.official(index, index)
        rng = random.Random(f"{self.name} {index}")
        purpose = (index >= SFT_START) + (index >= RL_START)
        while True:
            text, answer, data = self.draw(rng)
            question = f"{text}\n\n{FORMS[self.name].asks}"
            if zlib.crc32(question.encode()) % 3 == purpose:
                return Problem(self.name, index, question, answer, data)

    def solution(self, problem: Problem) -> str | None:
        """The reference program; None for an official question, whose wording no program here reads."""
        return None if "place" in problem.meta else self.program(problem.meta)


COLLECTED = ("causal_judgement", "disambiguation_qa", "movie_recommendation", "ruin_names")
COLLECTED += ("salient_translation_error_detection", "snarks", "sports_understanding")
TASKS: dict[str, Task] = {name: Collected(name) for name in COLLECTED}
