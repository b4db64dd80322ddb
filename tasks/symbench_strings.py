"""SymBench's tasks on strings and on counts of things: rewriting, exchanging, a lock, letters.

The papers give the tasks' names and the form of their answers. The rules are drawn anew for every question,
and every question states its own in full; the class constants set how hard the questions are.
"""

import itertools
import random
import re
from collections.abc import Sequence
from functools import cache

from tasks import Grade, Problem, Task
from tasks.answers import digits, integers, normal, untypeset

KINDS = tuple(f"{a}{letter}{b}" for a, b in ("[]", "{}", "()") for letter in "ABC")  # [A] [B] .. (C)
WHOLE, PARTS = "ABC", "XYZ"


def compact(answer: str | None) -> str:
    """The letters and digits of an answer, without the marks that may stand around or between them: space,
    quotes, brackets, commas, a full stop at the end.

    >>> compact("['7', '4', 'b', 'o']")
    '74bo'
    """
    return re.sub(r"[\s\"'`“”‘’()\[\]{},]|\.\s*$", "", untypeset(answer))


class Exchange(Task):
    """Things of several kinds that rules turn into one another, round after round; how many are left?

    A rule is a pair (used, made) of counts in the order of `kinds`. At its turn it is applied once if all it
    uses is there. The end is a round that changes nothing or leads to counts that were there before."""

    suite = "symbench"
    kinds: Sequence[str]
    opening: str  # what the things are
    PROGRAM = """\
seen = set()
while tuple(counts) not in seen:  # a round that changes nothing repeats its counts, too
    seen.add(tuple(counts))
    for used, made in rules:
        if all(c >= u for c, u in zip(counts, used)):
            counts = [c - u + m for c, u, m in zip(counts, used, made)]
print(counts)
"""

    def draw(self, rng: random.Random) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        """Counts and rules for which the rounds end."""
        raise NotImplementedError

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        counts, rules = self.draw(rng)
        lines = [f"{i}. {self._side(used)} -> {self._side(made)}" for i, (used, made) in enumerate(rules, 1)]
        question = (
            f"{self.opening} At the start there are {self._side(counts)}. These rules hold:\n"
            + "\n".join(lines)
            + "\n\nA rule uses up what stands left of the arrow and makes what stands right of it. Go "
            "through the rules in their order; this is a round. When a rule's turn comes, apply it once if "
            "everything it uses is there at that moment, otherwise skip it. Then begin the next round. Stop "
            "at the end of a round in which no rule was applied, or at whose end the numbers are the same as "
            "at the end of an earlier round or at the start. How many of each kind are there then? "
            f"Answer with the list of the {len(self.kinds)} numbers in the order {', '.join(self.kinds)}, "
            f"such as {list(range(len(self.kinds)))}."
        )
        meta = {"counts": counts, "rules": rules}
        return Problem(self.name, index, question, self.end(counts, rules), meta)

    def _side(self, counts: Sequence[int]) -> str:
        return " + ".join(f"{n} {kind}" for n, kind in zip(counts, self.kinds, strict=True) if n)

    @staticmethod
    def end(counts: Sequence[int], rules: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
        """The counts after the last round."""
        counts, earlier = list(counts), []
        while counts not in earlier:
            earlier.append(counts[:])
            for used, made in rules:
                if not any(counts[i] < n for i, n in enumerate(used)):
                    for i in range(len(counts)):
                        counts[i] += made[i] - used[i]
        return counts

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = digits(answer, len(self.kinds)) or integers(answer)
        return Grade(given == problem.answer, f"{given} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        rules = ",\n    ".join(map(repr, problem.meta["rules"]))
        return f"counts = {problem.meta['counts']}\nrules = [\n    {rules},\n]\n{self.PROGRAM}"


class StringSynthesis(Exchange):
    """Blocks of nine kinds are put together: rules make fewer blocks than they use, so the rounds end."""

    name = "string_synthesis"
    kinds = KINDS
    opening = "Blocks with one letter in one kind of bracket can be put together."
    RULES = (3, 7)
    BLOCKS = (4, 24)  # of each kind in square brackets; of the others, up to OTHERS
    OTHERS = 4

    def draw(self, rng: random.Random) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        counts = [rng.randint(*self.BLOCKS) if i < 3 else rng.randint(0, self.OTHERS) for i in range(9)]
        rules = []
        for i in range(rng.randint(*self.RULES)):
            used, made = [0] * 9, [0] * 9
            for kind in rng.choices(range(3 if i < 2 else 9), k=rng.randint(2, 4)):
                used[kind] += 1
            for kind in rng.choices([k for k in range(9) if not used[k]], k=rng.randint(1, sum(used) - 1)):
                made[kind] += 1
            rules.append((used, made))
        rng.shuffle(rules)
        return counts, rules


class StringSplitting(Exchange):
    """Machines are taken apart and parts changed into others. Rules keep the total weight (a part X or Y
    weighs 1, Z 2), so only finitely many counts can be reached; they may come back, which ends the rounds."""

    name = "string_splitting"
    kinds = WHOLE + PARTS
    opening = "A workshop has machines of the kinds A, B, C and parts of the kinds X, Y, Z."
    MACHINES, LOOSE = (2, 16), (0, 8)  # of each kind at the start
    EXCHANGES = (1, 4)  # rules beside the one that takes each machine apart

    def draw(self, rng: random.Random) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        counts = [rng.randint(*(self.MACHINES if kind in WHOLE else self.LOOSE)) for kind in self.kinds]
        weights = [rng.randint(3, 7) for _ in WHOLE] + [1, 1, 2]
        rules = [([int(i == k) for i in range(6)], self._filled(rng, weights, weights[k])) for k in range(3)]
        wanted = len(rules) + rng.randint(*self.EXCHANGES)
        while len(rules) < wanted:
            weight = rng.randint(1, 4)
            used, made = (self._filled(rng, weights, weight) for _ in range(2))
            disjoint = not any(u and m for u, m in zip(used, made, strict=True))
            if disjoint and (used, made) not in rules:
                rules.append((used, made))
        if rng.random() < 0.5:  # one machine is built again
            built = rng.randrange(3)
            rules.append((self._filled(rng, weights, weights[built]), [int(i == built) for i in range(6)]))
        rng.shuffle(rules)
        return counts, rules

    @staticmethod
    def _filled(rng: random.Random, weights: Sequence[int], weight: int) -> list[int]:
        """Counts of parts alone that weigh `weight` together."""
        made = [0] * 6
        while weight:
            kind = rng.choice([k for k in (3, 4, 5) if weights[k] <= weight])
            made[kind] += 1
            weight -= weights[kind]
        return made


class StringInsertion(Task):
    """Letters are put into a string wherever one of several patterns is met, in one reading."""

    name, suite = "string_insertion", "symbench"
    ALPHABET = "ABCDE"
    RULES, PATTERN, LENGTH = (2, 6), (2, 4), (12, 60)
    PROGRAM = """\
result, i = "", 0
while i < len(text):
    for pattern, replacement in rules:
        if text.startswith(pattern, i):
            result += replacement
            i += len(pattern)
            break
    else:  # no pattern begins here
        result += text[i]
        i += 1
print(result)
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        rules = {}
        for _ in range(rng.randint(*self.RULES)):
            pattern = "".join(rng.choices(self.ALPHABET, k=rng.randint(*self.PATTERN)))
            at = rng.randint(0, len(pattern))
            rules[pattern] = pattern[:at] + rng.choice(self.ALPHABET) + pattern[at:]
        length, text = rng.randint(*self.LENGTH), rng.choice(list(rules))
        while len(text) < length:
            text += rng.choice([*rules, *rng.choices(self.ALPHABET, k=len(rules) + 1)])
        lines = [f"{i}. {pattern} -> {new}" for i, (pattern, new) in enumerate(rules.items(), 1)]
        question = (
            f"Letters are inserted into the string\n{text}\nby these rules:\n" + "\n".join(lines) + "\n\n"
            "Read the string once from left to right. At the current letter, take the first rule of the "
            "list whose pattern (left of the arrow) begins at this letter: write what stands right of the "
            "arrow, and go on reading behind the pattern. If no rule's pattern begins there, write the "
            "letter itself and go on with the next one. Inserted letters are written, never read. What "
            "string is written? "
            "Answer with the string alone, such as ABCDE."
        )
        # an alternation of regular expressions tries its branches in order, as the rules want it
        written = re.sub("|".join(rules), lambda met: rules[met[0]], text)
        return Problem(self.name, index, question, written, {"text": text, "rules": list(rules.items())})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = compact(answer)
        return Grade(given == problem.answer, f"{given!r} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        meta = problem.meta
        return f'text = "{meta["text"]}"\nrules = {meta["rules"]}\n{self.PROGRAM}'


class StringDeletionAndModification(Task):
    """A string is shortened and changed by the first rule that fits, until none does.

    Every rule makes the string shorter, or earlier in the alphabet at the same length, so there is an end."""

    name, suite = "string_deletion_and_modification", "symbench"
    ALPHABET = "abcdef"
    RULES, LENGTH, STEPS = (3, 7), (10, 36), (3, 60)  # STEPS: how often rules are applied in all
    KINDS = ("start", "end", "inside", "inside", "same", "many")
    PROGRAM = """\
def step(s):
    for kind, old, new in rules:
        if kind == "start" and s.startswith(old):
            return new + s[len(old):]
        if kind == "end" and s.endswith(old):
            return s[:-len(old)] + new
        if kind == "inside" and old in s:
            return s.replace(old, new, 1)
        if kind == "same" and len(s) > 1 and s[0] == s[-1]:
            return s[:-1]
        if kind == "many" and s.count(old) > new:
            i = s.rindex(old)
            return s[:i] + s[i + 1:]
    return None  # no rule fits

while (after := step(text)) is not None:
    text = after
print(text)
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        while True:
            rules = list(dict.fromkeys(self._rule(rng) for _ in range(rng.randint(*self.RULES))))
            text = "".join(rng.choices(self.ALPHABET, k=rng.randint(*self.LENGTH)))
            last, steps = self.end(text, rules)
            if last and self.STEPS[0] <= steps <= self.STEPS[1]:
                break
        lines = [f"{i}. {self._sentence(*rule)}" for i, rule in enumerate(rules, 1)]
        question = (
            f"The string\n{text}\nis changed by these rules:\n" + "\n".join(lines) + "\n\n"
            "Apply the first rule of the list whose condition holds, once. Then look for the first rule "
            "whose condition holds for the new string, from the top of the list again, and so on, until no "
            "condition holds. What is the string then? Answer with the string alone, such as abc."
        )
        return Problem(self.name, index, question, last, {"text": text, "rules": rules})

    def _rule(self, rng: random.Random) -> tuple[str, str, str | int]:
        """(kind, old, new); for "many", new is the number that may stay."""
        kind = rng.choice(self.KINDS)
        if kind == "same":
            return kind, "", ""
        if kind == "many":
            return kind, rng.choice(self.ALPHABET), rng.randint(1, 4)
        old = "".join(rng.choices(self.ALPHABET, k=rng.randint(2, 3)))
        new = "".join(rng.choices(self.ALPHABET, k=rng.randint(0, len(old))))
        return kind, old, new if len(new) < len(old) or new < old else ""

    @staticmethod
    def _sentence(kind: str, old: str, new: str | int) -> str:
        if kind == "same":
            return "If there are two or more letters and the first and the last are equal, delete the last."
        if kind == "many":
            return f"If the letter {old} occurs more than {new} time(s), delete its last occurrence."
        what = f"replace it by {new}" if new else "delete it"
        if kind == "inside":
            return f"If {old} occurs in the string, take its first occurrence and {what}."
        return f"If the string {kind}s with {old}, {what}."

    @staticmethod
    def end(text: str, rules: Sequence[tuple[str, str, str | int]], limit: int = 100) -> tuple[str, int]:
        """The last string and the number of steps to it (at most `limit`), by regular expressions."""
        patterns = []
        for kind, old, new in rules:
            if kind == "same":
                patterns.append((re.compile(r"^(.)(.*)\1$"), r"\1\2"))
            elif kind == "many":
                patterns.append((re.compile(f"^((?:[^{old}]*{old}){{{new}}}.*){old}([^{old}]*)$"), r"\1\2"))
            else:
                patterns.append((re.compile("^" * (kind == "start") + old + "$" * (kind == "end")), new))
        for steps in range(limit):
            fitting = ((p, new) for p, new in patterns if p.search(text))
            if (found := next(fitting, None)) is None:
                return text, steps
            text = found[0].sub(found[1], text, count=1)
        return text, limit

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = compact(answer)
        return Grade(given == problem.answer, f"{given!r} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        rules = ",\n    ".join(map(repr, problem.meta["rules"]))
        return f'text = "{problem.meta["text"]}"\nrules = [\n    {rules},\n]\n\n{self.PROGRAM}'


def feedback(guess: Sequence[str], code: Sequence[str]) -> tuple[int, int, int]:
    """(in their place, elsewhere in the code, too low for their place) of a guess without repetitions."""
    right = occurring = low = 0
    for g, c in zip(guess, code, strict=True):
        right += g == c
        occurring += g in code
        low += g < c
    return right, occurring - right, low


@cache
def _codes(alphabet: str, length: int) -> list[str]:
    return ["".join(code) for code in itertools.permutations(alphabet, length)]


class Cryptanalysis(Task):
    """A lock's digits and letters are found from what is said about some tries; only one code fits."""

    name, suite = "cryptanalysis", "symbench"
    DIGITS, LETTERS = (2, 3), (1, 2)
    PROGRAM = """\
def feedback(guess, code):
    right = sum(g == c for g, c in zip(guess, code))
    low = sum(g < c for g, c in zip(guess, code))
    return right, len(set(guess) & set(code)) - right, low

# nothing said links digits and letters: each part can be found alone
code = ""
for alphabet, part in ((string.digits, digits), (string.ascii_uppercase, letters)):
    for candidate in itertools.permutations(alphabet, len(part[0][0])):
        if all(feedback(guess, candidate) == said for guess, said in part):
            code += "".join(candidate)
print(code)
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        codes = [_codes("0123456789", rng.randint(*self.DIGITS))]
        codes.append(_codes("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.randint(*self.LETTERS)))
        secret = [rng.choice(part) for part in codes]
        left, tries = codes, []
        while any(len(part) > 1 for part in left):
            pools = [
                [g for g in part if g != s] or codes[i]
                for i, (part, s) in enumerate(zip(left, secret, strict=True))
            ]
            guess = [rng.choice(pool) for pool in pools]
            said = [feedback(g, s) for g, s in zip(guess, secret, strict=True)]
            left = [
                [code for code in part if feedback(g, code) == f]
                for part, g, f in zip(left, guess, said, strict=True)
            ]
            tries.append(list(zip(guess, said, strict=True)))
        return Problem(self.name, index, self._question(secret, tries), "".join(secret), {"tries": tries})

    @staticmethod
    def _question(secret: Sequence[str], tries: Sequence[Sequence[tuple[str, tuple[int, int, int]]]]) -> str:
        lines = []
        for i, parts in enumerate(tries, 1):
            said = [
                f"{name}: {right} right, {elsewhere} elsewhere, {low} too low"
                for name, (_, (right, elsewhere, low)) in zip(("digits", "letters"), parts, strict=True)
            ]
            lines.append(f"{i}. {parts[0][0]}{parts[1][0]} - {'; '.join(said)}")
        digits, letters = (len(part) for part in secret)
        return (
            f"A lock opens with a code of {digits} different digits (0-9) followed by {letters} different "
            "capital letters (A-Z). After each of these tries, something was said about its digits and about "
            "its letters:\n" + "\n".join(lines) + "\n\n"
            '"Right" counts those that are in the code at the same place; "elsewhere" those that are in the '
            'code, but at another place; "too low" the places at which the code has a larger digit, or a '
            "letter later in the alphabet. What is the code? Only one fits. Answer with the code alone, such "
            f"as {'0123456789'[:digits]}{'ABCDE'[:letters]}."
        )

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = compact(answer).upper()
        return Grade(given == problem.answer, f"{given!r} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        digits, letters = (
            ",\n    ".join(map(repr, part)) for part in zip(*problem.meta["tries"], strict=True)
        )
        data = f"digits = [\n    {digits},\n]\nletters = [\n    {letters},\n]\n\n"
        return f"import itertools\nimport string\n\n{data}{self.PROGRAM}"


WORDS = """
    strawberry parliament mississippi bookkeeper committee assessment possession successful necessary
    balloon accommodation embarrass millennium rhythm occurrence beginning cappuccino raspberry blueberry
    pineapple watermelon chocolate marmalade cinnamon pepperoni mozzarella spaghetti lasagna broccoli
    cauliflower zucchini artichoke mathematics statistics geometry algebra equation hypothesis experiment
    laboratory telescope microscope thermometer electricity magnetism gravity satellite astronaut
    constellation meteorite volcano earthquake hurricane avalanche waterfall mountain peninsula
    archipelago continent hemisphere equator mediterranean caribbean antarctica australia philippines
    tennessee massachusetts connecticut pennsylvania philadelphia sacramento tallahassee cincinnati
    saskatchewan winnipeg amsterdam copenhagen stockholm barcelona casablanca johannesburg alexandria
    hippopotamus rhinoceros crocodile alligator salamander kangaroo woodpecker hummingbird nightingale
    grasshopper dragonfly caterpillar butterfly orangutan chimpanzee encyclopedia dictionary vocabulary
    alphabet punctuation apostrophe parenthesis sentence paragraph literature philosophy psychology
    archaeology architecture engineering cathedral monastery university kindergarten classroom blackboard
    interpreter programming algorithm recursion compiler keyboard television
"""


class Letters(Task):
    """How often, and where, a letter occurs in a text of one word or several."""

    name, suite = "letters", "symbench"
    COUNT = (1, 6)  # words in the text
    ABSENT = 0.1  # share of questions about any letter, which may well be absent

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        text = " ".join(rng.choices(WORDS.split(), k=rng.randint(*self.COUNT)))
        absent = rng.random() < self.ABSENT
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz" if absent else text.replace(" ", ""))
        places = [met.end() for met in re.finditer(letter, text)]
        question = (
            f'How often does the letter "{letter}" occur in "{text}", and at which positions? Count the '
            "positions from 1, the first character between the quotes; every character counts, spaces "
            "included. Answer in the form Count: 2, Positions: [3, 7], with the positions in rising order "
            "(and [] if there are none)."
        )
        answer = f"Count: {len(places)}, Positions: {places}"
        return Problem(self.name, index, question, answer, {"text": text, "letter": letter, "places": places})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        form = r"count ?[:=]? ?([0-9]{1,9}) ?[,;]? ?positions ?[:=]? ?(.*)"
        if not (found := re.fullmatch(form, normal(re.sub("[\"'`]", "", untypeset(answer))))):
            return Grade(False, "expected the form Count: 2, Positions: [3, 7]")
        places = problem.meta["places"]
        given = integers(found[2] or "[]")
        right = int(found[1]) == len(places) and given is not None and sorted(given) == places
        return Grade(right, f"{answer!r} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        return (
            f'text = "{problem.meta["text"]}"\nletter = "{problem.meta["letter"]}"\n'
            "positions = [i for i, character in enumerate(text, start=1) if character == letter]\n"
            'print(f"Count: {len(positions)}, Positions: {positions}")\n'
        )


class LetterLogicDiagram(Task):
    """A Latin square of letters to complete, with one letter all along the minor diagonal."""

    name, suite = "letter_logic_diagram", "symbench"
    SIZE = (5, 7)
    GIVEN = (0.2, 0.6)  # share of the cells that are shown
    PROGRAM = """\
n = len(grid)
letters = string.ascii_lowercase[:n]

def solve(diagonal):
    choices = {}
    for r in range(n):
        for c in range(n):
            if not grid[r][c]:
                used = {*grid[r], *(row[c] for row in grid)}
                pool = diagonal if r + c == n - 1 else letters
                choices[r, c] = [x for x in pool if x not in used]
    if not choices:
        return True
    r, c = min(choices, key=lambda cell: len(choices[cell]))  # the cell with the fewest choices
    for letter in choices[r, c]:
        grid[r][c] = letter
        if solve(diagonal):
            return True
    grid[r][c] = ""
    return False

given = {grid[r][n - 1 - r] for r in range(n)} - {""}
any(solve(letter) for letter in given or letters)
print("\\n".join(",".join(row) for row in grid))
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        n = rng.randint(*self.SIZE)
        # in the table of (r + c) mod n the minor diagonal is constant, and stays so when the columns are
        # reordered as the mirror image of the rows
        letters, rows = (rng.sample(range(n), n) for _ in range(2))
        full = [
            ["abcdefg"[letters[(rows[r] + n - 1 - rows[n - 1 - c]) % n]] for c in range(n)] for r in range(n)
        ]
        share = rng.uniform(*self.GIVEN)
        grid = [[x if rng.random() < share else "" for x in row] for row in full]
        shown = "\n".join(",".join(x or "_" for x in row) for row in grid)
        last = "abcdefg"[n - 1]
        question = (
            f"Fill in the empty cells (_) of this grid of {n} rows and {n} columns with the letters a to "
            f"{last}:\n{shown}\n\nEvery row and every column holds each of the letters a to {last} exactly "
            "once, and all cells of the minor diagonal (from the top right to the bottom left corner) hold "
            "the same letter. The letters shown stay where they are; if several grids are possible, any of "
            "them is right. Answer with the full grid, one row a line, the letters separated by commas."
        )
        answer = "\n".join(",".join(row) for row in full)
        return Problem(self.name, index, question, answer, {"grid": grid})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        grid, n = problem.meta["grid"], len(problem.meta["grid"])
        cells = re.sub(r"[|;]", "", compact(answer)).lower()
        if len(cells) != n * n:
            return Grade(False, f"{len(cells)} cells given, {n * n} expected")
        rows = [cells[n * r : n * (r + 1)] for r in range(n)]
        if any(rows[r][c] != x for r in range(n) for c, x in enumerate(grid[r]) if x):
            return Grade(False, "a letter that was shown has changed")
        for kind, lines in (("row", rows), ("column", zip(*rows, strict=True))):
            for i, line in enumerate(lines, 1):
                if sorted(line) != list("abcdefg"[:n]):
                    return Grade(False, f"{kind} {i} does not hold every letter once")
        if len({rows[r][n - 1 - r] for r in range(n)}) > 1:
            return Grade(False, "the minor diagonal holds several letters")
        return Grade(True, "all rules hold")

    def solution(self, problem: Problem) -> str:
        rows = ",\n    ".join(str(row).replace("'", '"') for row in problem.meta["grid"])
        return f"import string\n\ngrid = [\n    {rows},\n]\n{self.PROGRAM}"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        StringSynthesis(),
        StringInsertion(),
        StringDeletionAndModification(),
        StringSplitting(),
        Cryptanalysis(),
        Letters(),
        LetterLogicDiagram(),
    )
}
