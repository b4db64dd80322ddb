"""BIG-Bench Hard by rule, 1: what follows from what is said. Boolean expressions, formal fallacies, logical
deduction of an order, the free hours of a day, and who tells the truth.

Every task draws its question from the index alone. `program` solves it by search over all cases.
"""

import itertools
import random
from dataclasses import dataclass

from tasks import Task
from tasks.bbh_answers import listed, shuffled
from tasks.bbh_files import Generated

PEOPLE = ("Amara", "Bastien", "Chiara", "Dmitri", "Eirlys", "Farouk", "Gudrun", "Hiroshi", "Ines", "Jomo")
PEOPLE += ("Kalinda", "Leopold", "Marisol", "Niamh", "Oleksa", "Priya", "Quentin", "Rosalind", "Soren")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


class BooleanExpressions(Generated):
    """An expression of True, False, not, and, or: its value."""

    name = "boolean_expressions"
    LITERALS = (5, 12)

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        text, value, _ = self.expression(rng, rng.randint(*self.LITERALS))
        rules = "`not` binds more tightly than `and`, and `and` more tightly than `or`."
        question = f"Evaluate this Boolean expression. {rules}\n\n{text}"
        return question, str(value), {"expression": text}

    def expression(self, rng: random.Random, literals: int) -> tuple[str, bool, int]:
        """Text, value and how tightly its outermost operator binds (0 or, 1 and, 2 not, 3 no operator)."""
        if rng.random() < 0.25:
            text, value, level = self.expression(rng, literals)
            return f"not {text if level >= 2 else f'({text})'}", not value, 2
        if literals == 1:
            value = rng.random() < 0.5
            return str(value), value, 3
        level = rng.randint(0, 1)
        parts, first = [], rng.randint(1, literals - 1)
        for count in (first, literals - first):
            text, value, inner = self.expression(rng, count)
            parts.append((text if inner >= level and rng.random() < 0.8 else f"({text})", value))
        (left, a), (right, b) = parts
        return f"{left} {('or', 'and')[level]} {right}", (a and b) if level else (a or b), level

    def program(self, data: dict) -> str:
        return f"# the rules of precedence are Python's own\nprint({data['expression']})"


VARIABLES = "abcdefghijklm"
Literal = tuple[int, bool]  # which description, and whether it holds
DESCRIPTIONS = ("a member of the rowing club", "a cousin of Mirela", "an owner of a barge", "a beekeeper")
DESCRIPTIONS += ("a reader of the Harbour Gazette", "a guest of the Larch Hotel", "a player of the oboe")
DESCRIPTIONS += (
    "a neighbour of the baker",
    "a collector of old maps",
    "a subscriber to the opera",
    "a welder",
)
DESCRIPTIONS += (
    "a pupil of Mr Okafor",
    "a speaker of Basque",
    "a sponsor of the museum",
    "a night-shift nurse",
)
DESCRIPTIONS += ("a buyer of red wine", "a regular of the chess café", "a holder of a pilot's licence")
LINKS = (
    "Everyone who is {a} is {b}.",
    "Being {a} is enough for being {b}.",
    "Nobody can be {a} without being {b}.",
    "Only someone who is {b} is {a}.",
    "Whoever is {nb} is {na}.",
    "Nobody is at the same time {a} and {nb}.",
    "In order to be {a}, it is necessary to be {b}.",
)


@dataclass(frozen=True)
class Statement:
    """A sentence, and the same as clauses: all of them hold, each by one of its literals."""

    text: str
    clauses: tuple[tuple[Literal, ...], ...]

    @property
    def formula(self) -> str:
        """The clauses in Python; description number 0 is the variable a."""
        ors = [
            " or ".join(("" if sign else "not ") + VARIABLES[i] for i, sign in clause)
            for clause in self.clauses
        ]
        return " and ".join(f"({each})" for each in ors) if len(ors) > 1 else ors[0]

    def holds(self, world: tuple[bool, ...]) -> bool:
        return all(any(world[i] == sign for i, sign in clause) for clause in self.clauses)


class FormalFallacies(Generated):
    """An argument about who is what: a chain of implications, or one with a link turned round. The premises
    speak of one person at a time, so an argument is valid if no kind of person refutes it."""

    name = "formal_fallacies"
    LINKS = (2, 4)
    COMPOUND = 0.35  # share of links with "or" in front or "and" behind

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        wanted = rng.random() < 0.5
        while True:
            premises, conclusion, count = self.argument(rng, sound=wanted)
            if entails(premises, conclusion, count) == wanted:
                break
        described = rng.sample(DESCRIPTIONS, count)
        lines = [f"- {fill(p.text, described)}" for p in rng.sample(premises, len(premises))]
        text = "Somebody argues from these premises:\n" + "\n".join(lines)
        text += f"\nand concludes:\n- {fill(conclusion.text, described)}\n"
        text += (
            "With the premises as they stand and nothing else, is the argument deductively valid or invalid?"
        )
        data = {"premises": [p.formula for p in premises], "conclusion": conclusion.formula}
        return text, "valid" if wanted else "invalid", data | {"described": described}

    def argument(self, rng: random.Random, sound: bool) -> tuple[list[Statement], Statement, int]:
        """Premises, conclusion, number of descriptions. If not sound, one step at least goes astray."""
        length = rng.randint(*self.LINKS)
        chain = [(i, rng.random() < 0.7) for i in range(length + 1)]
        links = list(itertools.pairwise(chain))
        ends = (chain[0], chain[-1])
        if not sound:  # what is turned round: a premise, or what the conclusion says
            place = rng.randrange(length + 1)
            ends = ends[::-1] if place == length else ends
            links = [link[::-1] if i == place else link for i, link in enumerate(links)]
        extra = itertools.count(length + 1)
        premises = [self.link(rng, a, b, extra) for a, b in links]
        count = next(extra)
        if rng.random() < 0.5:
            return premises, self.link(rng, *ends, None), count
        person = rng.choice(PEOPLE)
        (a, b) = ends if rng.random() < 0.5 else (negated(ends[1]), negated(ends[0]))
        return [*premises, fact(person, a)], fact(person, b), count

    def link(self, rng: random.Random, a: Literal, b: Literal, extra: itertools.count | None) -> Statement:
        """`a` implies `b`, perhaps with one more description from `extra` that plays no part."""
        if extra is None or rng.random() > self.COMPOUND:
            text = rng.choice(LINKS)
            for key, literal in {"na": negated(a), "nb": negated(b), "a": a, "b": b}.items():
                text = text.replace(f"{{{key}}}", phrase(literal))
            return Statement(text, ((negated(a), b),))
        c = (next(extra), True)
        if rng.random() < 0.5:
            text = f"Everyone who is either {phrase(a)} or {phrase(c)}, or both, is {phrase(b)}."
            return Statement(text, ((negated(a), b), (negated(c), b)))
        text = f"Everyone who is {phrase(a)} is both {phrase(b)} and {phrase(c)}."
        return Statement(text, ((negated(a), b), (negated(a), c)))

    def program(self, data: dict) -> str:
        letters = VARIABLES[: len(data["described"])]
        what = "\n".join(
            f"# {each}: is {text}" for each, text in zip(letters, data["described"], strict=True)
        )
        premises = "".join(f"        {p},\n" for p in data["premises"])
        return (
            f"from itertools import product\n\n{what}\nvalid = True\n"
            f"for {', '.join(letters)} in product([False, True], repeat={len(letters)}):\n"
            f"    premises = [\n{premises}    ]\n"
            f"    if all(premises) and not ({data['conclusion']}):\n"
            "        valid = False  # such a person would refute the argument\n"
            'print("valid" if valid else "invalid")'
        )


def negated(literal: Literal) -> Literal:
    return literal[0], not literal[1]


def phrase(literal: Literal) -> str:
    """The literal in words, its description as a place to be filled."""
    return ("" if literal[1] else "not ") + f"<{literal[0]}>"


def fact(person: str, literal: Literal) -> Statement:
    return Statement(f"{person} is {phrase(literal)}.", ((literal,),))


def fill(text: str, described: list[str]) -> str:
    for i, each in enumerate(described):
        text = text.replace(f"<{i}>", each)
    return text


def entails(premises: list[Statement], conclusion: Statement, count: int) -> bool:
    """Whether the conclusion holds in every world of `count` descriptions in which the premises do."""
    worlds = itertools.product((False, True), repeat=count)
    return all(conclusion.holds(w) for w in worlds if all(p.holds(w) for p in premises))


@dataclass(frozen=True)
class Scene:
    """Things in a row: how one speaks of two of them, and of a place from either end."""

    opening: str
    things: tuple[str, ...]
    before: tuple[str, str]  # {a} comes earlier than {b}, said from either side
    place: tuple[str, str]  # {a} is the {k}-th from the front, from the back


POTS = ("basil", "thyme", "fern", "cactus", "orchid", "ivy", "mint", "aloe")
TOWERS = ("water", "clock", "church", "radio", "school", "castle", "harbour", "bank")
CHEESES = ("goat", "blue", "smoked", "herb", "cream", "hard", "walnut", "abbey")
SCENES = (
    Scene(
        "{n} pots stand in a row on a windowsill: {things}.",
        tuple(f"the {plant} pot" for plant in POTS),
        ("{A} stands to the left of {b}.", "{B} stands to the right of {a}."),
        ("{A} is the {k} from the left.", "{A} is the {k} from the right."),
    ),
    Scene(
        "{n} people ran a race, and no two arrived together: {things}.",
        PEOPLE,
        ("{A} arrived before {b}.", "{B} arrived after {a}."),
        ("{A} was the {k} to arrive.", "{A} was {k} counted from the end of the race."),
    ),
    Scene(
        "{n} towers of a town are all of different heights: {things}.",
        tuple(f"the {name} tower" for name in TOWERS),
        ("{A} is taller than {b}.", "{B} is lower than {a}."),
        ("{A} is {k} in height from the tallest down.", "{A} is {k} in height from the lowest up."),
    ),
    Scene(
        "{n} cheeses lie on a stall, each at its own price: {things}.",
        tuple(f"the {kind} cheese" for kind in CHEESES),
        ("{A} costs less than {b}.", "{B} is more expensive than {a}."),
        ("{A} is {k} in price from the cheapest up.", "{A} is {k} in price from the dearest down."),
    ),
)


class LogicalDeduction(Generated):
    """An order told by comparisons and places; which of the things is at a given place."""

    PLACED = 0.3  # share of things whose place is told

    def __init__(self, count: int, word: str):
        self.count, self.name = count, f"logical_deduction_{word}_objects"

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        scene, n = rng.choice(SCENES), self.count
        order = rng.sample(scene.things, n)
        placed = sorted(rng.sample(range(n), sum(rng.random() < self.PLACED for _ in range(n - 2))))
        clues = [self.place_clue(rng, scene, order, k) for k in placed]
        chain = [
            thing for k, thing in enumerate(order) if k not in placed
        ]  # fills the other places in its order
        for a, b in itertools.pairwise(chain):
            text = rng.choice(scene.before)
            clues.append((sentence(text, a=a, b=b), f"place[{a!r}] < place[{b!r}]"))
        rng.shuffle(clues)
        asked, side = order.index(rng.choice(chain)), rng.randrange(2)
        where = ORDINALS[(asked, n - 1 - asked)[side]]
        options, answer = shuffled(rng, order[asked], [t for t in order if t != order[asked]])
        opening = scene.opening.format(n={3: "Three", 5: "Five", 7: "Seven"}[n], things=", ".join(options))
        says = [sentence(scene.place[side], a=thing, k=where) for thing in options]
        question = f"{opening} {' '.join(text for text, _ in clues)} What must be true?\n{listed(says)}"
        return question, answer, {"things": options, "clues": [code for _, code in clues], "asked": asked}

    @staticmethod
    def place_clue(rng: random.Random, scene: Scene, order: list[str], k: int) -> tuple[str, str]:
        side = rng.randrange(2)
        where = ORDINALS[(k, len(order) - 1 - k)[side]]
        return sentence(scene.place[side], a=order[k], k=where), f"place[{order[k]!r}] == {k}"

    def program(self, data: dict) -> str:
        conditions = "".join(f"        {clue},\n" for clue in data["clues"])
        return (
            "from itertools import permutations\n\n"
            f"things = {data['things']}  # in the order of the options\n"
            "for order in permutations(things):\n"
            "    place = {thing: i for i, thing in enumerate(order)}  # 0 is the front\n"
            f"    if all([\n{conditions}    ]):\n"
            f"        print(f\"({{'ABCDEFG'[things.index(order[{data['asked']}])]}})\")\n"
            "        break"
        )


def sentence(text: str, a: str = "", b: str = "", **rest: str) -> str:
    """The text with {a}, {b} filled in, and {A}, {B} as they begin a sentence."""
    return text.format(a=a, b=b, A=a[:1].upper() + a[1:], B=b[:1].upper() + b[1:], **rest)


PLACES = ("planetarium", "swimming pool", "post office", "art gallery", "library", "market hall")
SEEN = ("repairing a bicycle in the yard", "feeding ducks by the canal", "asleep on a park bench")
SEEN += ("queueing at the ticket office", "playing cards in the café", "painting the garden fence")
SEEN += ("listening to the brass band", "waiting at the dentist's", "buying paint at the ironmonger's")
SEEN += ("washing the delivery van", "rehearsing with the choir", "digging in the allotment")


class TemporalSequences(Generated):
    """A day of which all hours but one stretch are accounted for: when the visit can have been."""

    name = "temporal_sequences"
    SEEN = (4, 7)  # stretches for which there is a witness

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        count = rng.randint(*self.SEEN)
        start = rng.randint(10, 18) * 30
        borders = [start, *sorted(rng.sample(range(start + 30, 23 * 60, 30), count + 1))]
        stretches = list(itertools.pairwise(borders))
        free = rng.randrange(len(stretches))
        closing = borders[-1] if free > len(stretches) - 3 else rng.choice(borders[free + 2 : -1])
        person, *witnesses = rng.sample(PEOPLE, count + 1)
        place, doing = rng.choice(PLACES), rng.sample(SEEN, count)
        seen = [s for i, s in enumerate(stretches) if i != free]
        told = [
            f"{who} saw {person} {what} from {clock(a)} to {clock(b)}."
            for who, what, (a, b) in zip(witnesses, doing, seen, strict=True)
        ]
        rng.shuffle(told)
        options, answer = shuffled(rng, between(stretches[free]), [between(s) for s in rng.sample(seen, 3)])
        question = f"{person} went to the {place} one day, without leaving in between. {person} got up at "
        question += f"{clock(start)} and was home for the night at {clock(borders[-1])}. {' '.join(told)} "
        question += (
            f"The {place} closed at {clock(closing)}. When can {person} have been there?\n{listed(options)}"
        )
        return (
            question,
            answer,
            {"options": options, "seen": [between(s) for s in seen], "closing": clock(closing)},
        )

    def program(self, data: dict) -> str:
        seen = "".join(f"    {each!r},\n" for each in data["seen"])
        return (
            f"seen = [\n{seen}]\nclosing = {data['closing']!r}\noptions = {data['options']}\n{FREE_STRETCH}"
        )


FREE_STRETCH = """

def minutes(clock):
    hours, rest = clock.split(":")
    return 60 * int(hours) + int(rest)


def stretch(text):
    return [minutes(clock) for clock in text.split(" to ")]


for letter, option in zip("ABCD", options):
    start, end = stretch(option)
    met = any(a < end and start < b for a, b in map(stretch, seen))
    if not met and end <= minutes(closing):
        print(f"({letter})")
"""


def clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02d}"


def between(stretch: tuple[int, int]) -> str:
    return f"{clock(stretch[0])} to {clock(stretch[1])}"


class WebOfLies(Generated):
    """Statements about who tells the truth, each about people spoken of before: whether the last one does."""

    name = "web_of_lies"
    COUNT = (5, 9)  # people

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        people = rng.sample(PEOPLE, rng.randint(*self.COUNT))
        honest = {name: rng.random() < 0.5 for name in people}
        first = people[0]
        text = f"{first} {'tells the truth' if honest[first] else 'lies'}."
        told = [(text, f"honest[{first!r}] == {honest[first]}")]
        for i, name in enumerate(people[1:], 1):
            told.append(self.claim(rng, name, people[:i], honest))
        if rng.random() < 0.5:
            rng.shuffle(told)
        question = "On an island everyone either always tells the truth or always lies. "
        question += f"{' '.join(text for text, _ in told)} Does {people[-1]} tell the truth?"
        answer = "Yes" if honest[people[-1]] else "No"
        return question, answer, {"people": people, "told": [code for _, code in told]}

    @staticmethod
    def claim(rng: random.Random, name: str, known: list[str], honest: dict[str, bool]) -> tuple[str, str]:
        """What a person who is honest or not says of the last one known, or of that one and another."""
        about = known[-1]
        if len(known) > 1 and rng.random() < 0.3:
            other = rng.choice(known[:-1])
            alike = (honest[about] == honest[other]) == honest[name]  # what is said, which a liar turns round
            kind, sign = ("the same kind", "==") if alike else ("different kinds", "!=")
            text = f"{name} says that {about} and {other} are of {kind}."
            return text, f"honest[{name!r}] == (honest[{about!r}] {sign} honest[{other!r}])"
        claims = honest[about] == honest[name]
        text = f"{name} says that {about} {'tells the truth' if claims else 'lies'}."
        return text, f"honest[{name!r}] == (honest[{about!r}] == {claims})"

    def program(self, data: dict) -> str:
        conditions = "".join(f"        {each},\n" for each in data["told"])
        return (
            f"from itertools import product\n\npeople = {data['people']}\n"
            "for values in product([True, False], repeat=len(people)):\n"
            "    honest = dict(zip(people, values))\n"
            "    # who says something is honest exactly if it is true\n"
            f"    if all([\n{conditions}    ]):\n"
            '        print("Yes" if honest[people[-1]] else "No")'
        )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        BooleanExpressions(),
        FormalFallacies(),
        *(LogicalDeduction(n, word) for n, word in ((3, "three"), (5, "five"), (7, "seven"))),
        TemporalSequences(),
        WebOfLies(),
    )
}
