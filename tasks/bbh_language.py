"""BIG-Bench Hard by rule, 3: signs in order. Brackets to be closed, figures drawn by a path, adjectives
before a noun, sums, and words to be sorted.

Every task draws its question from the index alone, and knows the answer from how the question was built.
"""

import random
from bisect import insort
from collections.abc import Sequence
from functools import cache
from math import atan2

from tasks import Task
from tasks.bbh_answers import CLOSING, LETTERS, PRINT_LETTER, listed, shuffled
from tasks.bbh_files import Generated


class DyckLanguages(Generated):
    """A sequence of brackets that breaks off: those that are missing at its end."""

    name = "dyck_languages"
    LENGTH = (6, 40)

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        given, open_ = [], []
        length = rng.randint(*self.LENGTH)
        while len(given) < length or not open_:
            if open_ and rng.random() < 0.47:
                given.append(CLOSING[open_.pop()])
            else:
                open_.append(rng.choice(list(CLOSING)))
                given.append(open_[-1])
        text = " ".join(given)
        missing = " ".join(CLOSING[each] for each in reversed(open_))
        question = (
            "Every bracket must be closed by its own kind, ( ) [ ] { } < >, the last one opened first. "
            f"Which brackets are missing at the end of this sequence?\n\n{text}"
        )
        return question, f'"{missing}"', {"given": text}

    def program(self, data: dict) -> str:
        return (
            f"closing = {CLOSING}\nstack = []\n"
            f"for bracket in {data['given']!r}.split():\n"
            "    if bracket in closing:\n"
            "        stack.append(closing[bracket])\n"
            "    else:\n"
            "        assert stack.pop() == bracket\n"
            """print(f'"{" ".join(reversed(stack))}"')"""
        )


FIGURES = {"triangle": 3, "pentagon": 5, "hexagon": 6, "heptagon": 7, "octagon": 8}
SHAPES = ("line", "circle", "ellipse", "sector", "rectangle", "parallelogram", "trapezoid", "kite", *FIGURES)
Point = tuple[int, int]  # in quarters of a unit


class GeometricShapes(Generated):
    """The figure that an SVG path draws. Coordinates are quarters, so right angles are exact."""

    name = "geometric_shapes"
    OPTIONS = 7

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        name = rng.choice(SHAPES)
        if name in ("circle", "ellipse"):
            path = self.rounded(rng, name)
        else:
            path = self.sector(rng) if name == "sector" else polyline(rng, self.corners(rng, name))
        others = [each for each in SHAPES if each != name]
        options, answer = shuffled(rng, name, rng.sample(others, self.OPTIONS - 1))
        question = f'Which figure does this SVG path draw?\n\n<path d="{path}"/>\n\n'
        question += f"Choose the name that fits best.\n{listed(options)}"
        return question, answer, {"path": path, "options": options}

    def corners(self, rng: random.Random, name: str) -> list[Point]:
        """The corners in the order in which they are joined; a line has two."""
        at = (rng.randint(80, 240), rng.randint(80, 240))
        u = rng.choice(circle(25))  # any direction, with whole coordinates
        v = (-u[1], u[0])  # at right angles to it, and as long
        if name == "line":
            return [at, shifted(at, u, rng.randint(1, 5))]
        if name in FIGURES:  # on a circle, which is then slanted
            lean = rng.choice((-1, 0, 1))
            ring = sorted(rng.sample(range(len(circle(65))), FIGURES[name]))
            return [(at[0] + x + lean * y, at[1] + y) for x, y in (circle(65)[i] for i in ring)]
        a, b = rng.sample(range(1, 6), 2)
        if name == "rectangle":
            return [at, shifted(at, u, a), shifted(shifted(at, u, a), v, b), shifted(at, v, b)]
        if name == "kite":  # an axis along u; two corners beside it, nearer to one end
            long = 2 * rng.randint(2, 4) + 1
            beside = shifted(at, u, rng.randint(1, long // 2))
            return [at, shifted(beside, v, a), shifted(at, u, long), shifted(beside, v, -a)]
        slant = rng.choice([t for t in (-3, -2, -1, 1, 2, 3) if t * t + b * b != a * a])  # no rhombus
        top = shifted(shifted(at, v, b), u, slant)
        wide = a if name == "parallelogram" else a + rng.randint(1, 3)
        return [at, shifted(at, u, a), shifted(top, u, wide), top]

    @staticmethod
    def rounded(rng: random.Random, name: str) -> str:
        """A circle or an ellipse: two arcs between opposite points."""
        x, y, a = rng.randint(120, 240), rng.randint(120, 240), rng.randint(8, 80)
        if name == "circle":
            a = b = rng.choice((25, 50, 65))
            dx, dy = rng.choice(circle(a))
        else:
            b = rng.choice([n for n in range(8, 80) if n != a])
            dx, dy = a, 0
        one, other = (x + dx, y + dy), (x - dx, y - dy)
        radii = f"{quarters(a)},{quarters(b)}"
        return f"M {pair(one)} A {radii} 0 1,0 {pair(other)} A {radii} 0 1,0 {pair(one)}"

    @staticmethod
    def sector(rng: random.Random) -> str:
        """Two radii and the arc between their ends."""
        centre, radius = (rng.randint(80, 240), rng.randint(80, 240)), rng.choice((25, 65))
        around = circle(radius)
        i = rng.randrange(len(around))
        j = i + rng.randint(1, len(around) // 2 - 1)
        one, other = (shifted(centre, around[k % len(around)], 1) for k in (i, j))
        arc = f"A {quarters(radius)},{quarters(radius)} 0 0,1 {pair(other)}"
        return f"M {pair(centre)} L {pair(one)} {arc} {rng.choice((f'L {pair(centre)}', 'Z'))}"

    def program(self, data: dict) -> str:
        return (
            f"import re\n\npath = {data['path']!r}\noptions = {data['options']}\n"
            + FIGURE_OF_PATH
            + PRINT_LETTER
        )


FIGURE_OF_PATH = r"""arcs = re.findall(r"A (\S+),(\S+)", path)
ends = re.findall(r"(-?[\d.]+),(-?[\d.]+)(?= [MLAZ]|$)", path)
corners = list(dict.fromkeys(complex(float(x), float(y)) for x, y in ends))
names = {2: "line", 3: "triangle", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}


def parallel(u, v):
    return (u.conjugate() * v).imag == 0


if len(arcs) == 2:
    result = "circle" if arcs[0][0] == arcs[0][1] else "ellipse"
elif arcs:
    result = "sector"
elif len(corners) != 4:
    result = names[len(corners)]
else:
    a, b, c, d = [corners[i] - corners[i - 1] for i in range(4)]  # the sides
    if parallel(a, c) and parallel(b, d):
        result = "rectangle" if (a.conjugate() * b).real == 0 else "parallelogram"
    else:
        result = "trapezoid" if parallel(a, c) or parallel(b, d) else "kite"
"""


@cache
def circle(radius: int) -> tuple[Point, ...]:
    """All points with whole coordinates at this distance from the origin, in order around it."""
    side = range(-radius, radius + 1)
    points = [(x, y) for x in side for y in side if x * x + y * y == radius * radius]
    return tuple(sorted(points, key=lambda p: atan2(p[1], p[0])))


def shifted(point: Point, direction: Point, times: int) -> Point:
    return point[0] + times * direction[0], point[1] + times * direction[1]


def quarters(n: int) -> str:
    return f"{n / 4:.2f}"


def pair(point: Point) -> str:
    return f"{quarters(point[0])},{quarters(point[1])}"


def polyline(rng: random.Random, corners: Sequence[Point]) -> str:
    """The closed line through the corners from any of them, either way round, in one stroke or by sides."""
    start, way = rng.randrange(len(corners)), rng.choice((1, -1))
    places = [pair(corners[(start + way * i) % len(corners)]) for i in range(len(corners))]
    if len(places) == 2:
        return f"M {places[0]} L {places[1]}"
    sides = zip(places, [*places[1:], places[0]], strict=True)
    stroke = "M " + " L ".join(places)
    return rng.choice((f"{stroke} Z", f"{stroke} L {places[0]}", " ".join(f"M {a} L {b}" for a, b in sides)))


ADJECTIVES = {
    "opinion": ("lovely", "awful", "charming", "dreadful", "splendid", "dull", "elegant"),
    "size": ("tiny", "huge", "enormous", "small", "big", "gigantic"),
    "age": ("ancient", "old", "brand-new", "antique", "modern", "recent"),
    "shape": ("round", "square", "oval", "triangular", "hexagonal", "spherical"),
    "colour": ("crimson", "grey", "beige", "teal", "pink", "violet", "yellow"),
    "origin": ("Danish", "Peruvian", "Kenyan", "Welsh", "Korean", "Greek", "Moroccan"),
    "material": ("wooden", "copper", "leather", "glass", "paper", "steel", "clay"),
    "purpose": ("cooking", "hunting", "gardening", "camping", "fishing", "drawing", "sewing"),
}
NOUNS = ("box", "bag", "knife", "table", "bowl", "lamp", "chest", "stool", "hat", "case")


class Hyperbaton(Generated):
    """Adjectives before a noun in several orders: which one English speakers use."""

    name = "hyperbaton"
    COUNT, OPTIONS = (3, 6), (2, 5)  # adjectives, phrases

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        count = rng.randint(*self.COUNT)
        kinds = sorted(rng.sample(range(len(ADJECTIVES)), count))
        chosen = [rng.choice(list(ADJECTIVES.values())[k]) for k in kinds]
        noun, wrong, wanted = rng.choice(NOUNS), set(), rng.randint(*self.OPTIONS) - 1
        while len(wrong) < wanted:
            wrong |= {" ".join([*rng.sample(chosen, count), noun])} - {" ".join([*chosen, noun])}
        options, answer = shuffled(rng, " ".join([*chosen, noun]), sorted(wrong))
        order = ", ".join(ADJECTIVES)
        question = f"What an adjective tells decides its place before an English noun: {order}. "
        question += f"Which of these phrases keeps that order?\n{listed(options)}"
        kind = {word: list(ADJECTIVES)[k] for word, k in sorted(zip(chosen, kinds, strict=True))}
        return question, answer, {"kind": kind, "options": options}

    def program(self, data: dict) -> str:
        return (
            f"order = {list(ADJECTIVES)}\nkind = {data['kind']}\noptions = {data['options']}\n"
            f"for letter, phrase in zip({LETTERS[:5]!r}, options):\n"
            "    ranks = [order.index(kind[word]) for word in phrase.split()[:-1]]\n"
            "    if ranks == sorted(ranks):\n"
            '        print(f"({letter})")'
        )


class MultistepArithmeticTwo(Generated):
    """Sums, differences and products of small numbers in nested brackets."""

    name = "multistep_arithmetic_two"
    NUMBERS, GROUPS = (2, 4), (2, 3)  # in a bracket, brackets in a bracket

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        text, value = self.expression(rng, depth=2)
        return f"Compute:\n\n{text}", str(value), {"expression": text}

    def expression(self, rng: random.Random, depth: int) -> tuple[str, int]:
        """Text and value of a row of numbers (depth 0), or of brackets."""
        parts = []
        for _ in range(rng.randint(*(self.GROUPS if depth else self.NUMBERS))):
            if depth:
                text, value = self.expression(rng, depth - 1)
                parts.append((f"({text})", value))
            else:
                value = rng.choice([n for n in range(-9, 10) if n])
                parts.append((str(value), value))
        text, terms = parts[0][0], [parts[0][1]]  # the terms add up to the value
        for part, value in parts[1:]:
            operator = rng.choice("+-*")
            text += f" {operator} {part}"
            if operator == "*":
                terms[-1] *= value
            else:
                terms.append(value if operator == "+" else -value)
        return text, sum(terms)

    def program(self, data: dict) -> str:
        return f"print({data['expression']})"


WORDS = """
abacus abbey acorn acrobat adder admiral afterglow agate almond alpine amber anchor anthem anvil apron
arcade badger bagpipe ballad balloon bamboo banner bargain barge barley barn barrel barrier basalt basil
basin basket cabin cable cactus camel camera canal candle canoe canopy canvas caravan cargo carpet carrot
castle cathedral dagger dahlia dairy damask dancer daylight decade delta denim desert dewdrop dialect
diamond dinghy dolphin eagle earth easel echo eclipse eddy elbow elder elm ember emblem engine envoy epic
errand estuary fable fabric falcon feather fence fern ferry fiddle field filter finch fiord flannel flask
flint flute gable galaxy gale gallery garland garnet gate gazelle geyser giant ginger glacier glade
glider goblet habit hail hamlet hammer hammock handle harbour harness harp harvest hatch hazel heath
hedge helmet heron ibis iceberg icicle idiom igloo inkwell inlet insect island ivory jacket jackal jade
jasmine javelin jetty jigsaw kayak kelp kennel kernel kestrel kettle keyhole kiln kindle kiosk kitchen
kite knapsack knot label labyrinth lace lacquer ladder ladle lagoon lantern larch lark lattice laurel
lavender ledger lemon lentil magnet magpie mallet mango mantle marble margin marina market marsh mast
meadow medal melody mercury mesh nail narrow navel nebula nectar needle nest nettle nickel nimble noodle
north notch novel nugget nutmeg oak oar oasis oatmeal oboe ocean ochre octave olive onion opal orbit
orchard orchid otter oven owl oyster pail palace palette pancake panther paper papyrus parade parcel
parrot pasture pebble pelican pencil pendulum quail quarry quartz quay quill quilt quiver rabbit radar
radish raft rain rake ravine reed reef resin ribbon saddle saffron sail salmon sand sandal sapphire
satchel saucer scarf schooner sedge shelter shingle silk silo table tailor talon tandem tango tapestry
tavern teapot temple tendon thicket thimble thistle thorn thunder tide umbrella uncle uniform upland
urchin urn valley vanilla vapour vault velvet vendor verse vessel village violet wagon walnut walrus
warbler water wax weaver wedge whale wharf wheat whistle willow yacht yarn yeast zebra zinc
"""


class WordSorting(Generated):
    """Words in alphabetical order, many of them with the same beginning."""

    name = "word_sorting"
    COUNT, INITIALS = (4, 20), (3, 8)

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        known = WORDS.split()
        initials = rng.sample(sorted({word[0] for word in known}), rng.randint(*self.INITIALS))
        near = [word for word in known if word[0] in initials]
        words = rng.sample(near, min(len(near), rng.randint(*self.COUNT)))
        in_order: list[str] = []
        for word in words:
            insort(in_order, word)
        question = f"Put these words into alphabetical order: {', '.join(words)}."
        return question, " ".join(in_order), {"words": words}

    def program(self, data: dict) -> str:
        return f"words = {data['words']}\nprint(*sorted(words))"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (DyckLanguages(), GeometricShapes(), Hyperbaton(), MultistepArithmeticTwo(), WordSorting())
}
