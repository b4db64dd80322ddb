"""BIG-Bench Hard by rule, 2: small worlds that one keeps track of. Dates, ways on a grid, counted things,
tables, coloured things in a row, and things that change hands.

Every task draws its question from the index alone. `program` follows the events of the text one by one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from tasks import Task
from tasks.bbh_answers import PRINT_LETTER, listed, shuffled
from tasks.bbh_files import Generated
from tasks.bbh_logic import ORDINALS, PEOPLE

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def nearby(rng: random.Random, right: int, count: int) -> list[str]:
    """`count` wrong numbers close to the right one, none of them negative."""
    spread = max(4, right // 4)
    close = [n for n in range(max(0, right - spread), right + spread + 1) if n != right]
    return [str(n) for n in rng.sample(close, count)]


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MONTHS += ("November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class DateUnderstanding(Generated):
    """What date it is follows from a hint; what date is asked for follows from that."""

    name = "date_understanding"
    YEARS = (1925, 2075)
    OPTIONS = 6

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        hint, today, hint_code = self.hint(rng)
        asked, there, code = self.question(rng, today)
        wrong = {there + timedelta(d) for d in (-365, -7, -2, -1, 1, 2, 7, 10, 365)}
        wrong |= {today, today - (there - today), date(there.year + 1, there.month, min(there.day, 28))}
        wrong |= {date(there.year, there.day, there.month)} if there.day <= 12 else set()
        texts = sorted(american(day) for day in wrong - {there})
        options, answer = shuffled(rng, american(there), rng.sample(texts, self.OPTIONS - 1))
        question = f"{hint} What is the date {asked}, written as month/day/year?\n{listed(options)}"
        return question, answer, {"today": hint_code, "there": code, "options": options}

    def hint(self, rng: random.Random) -> tuple[str, date, str]:
        """A sentence that tells today's date, the date, and how it is computed."""
        told = date(rng.randint(*self.YEARS), 1, 1) + timedelta(rng.randrange(365))
        y, m, d, n = told.year, told.month, told.day, rng.randint(2, 30)
        month, code = MONTHS[m - 1], f"date({y}, {m}, {d})"
        number = (told - date(y, 1, 1)).days + 1
        kinds = [  # sentence, days from the date it names until today
            (f"Today is {WEEKDAYS[told.weekday()]}, {d} {month} {y}.", 0),
            (f"Today's date, in the order day/month/year, is {d}/{m}/{y}.", 0),
            (f"Yesterday was {d} {month} {y}.", 1),
            (f"The day after tomorrow is {month} {d}, {y}.", -2),
            (f"{n} days ago it was {month} {d}, {y}.", n),
            (f"In {n} weeks it will be {d} {month} {y}.", -7 * n),
            (f"Today is day number {number} of the year {y}.", 0),
            (f"Today is the last day of {month} {y}.", -1),
        ]
        text, days = rng.choice(kinds)
        if "day number" in text:
            return text, told, f"date({y}, 1, 1) + timedelta({number} - 1)"
        if "last day" in text:  # the day before the first of the next month
            told, code = date(y + m // 12, m % 12 + 1, 1), f"date({y + m // 12}, {m % 12 + 1}, 1)"
        return text, told + timedelta(days), f"{code} + timedelta({days})" if days else code

    def question(self, rng: random.Random, today: date) -> tuple[str, date, str]:
        """Which date is asked for in words, the date, and how it is computed from today."""
        n, sign = rng.randint(2, 60), rng.choice((1, -1))
        step = rng.choice(("day", "days", "weeks", *(("months", "years") if today.day <= 28 else ())))
        asked = f"{n} {step} {'from' if sign > 0 else 'before'} today"
        if step in ("months", "years"):  # up to the 28th, the same day exists in every month
            count = sign * n * (12 if step == "years" else 1)
            months = 12 * today.year + today.month - 1 + count
            return asked, date(months // 12, months % 12 + 1, today.day), f"shifted(today, {count})"
        days = sign * {"day": 1, "days": n, "weeks": 7 * n}[step]
        if step == "day":
            asked = "tomorrow" if sign > 0 else "yesterday"
        return asked, today + timedelta(days), f"today + timedelta({days})"

    def program(self, data: dict) -> str:
        needed = "timedelta" in data["today"] + data["there"]
        shifted = (
            "\n\ndef shifted(day, months):\n"
            "    months += 12 * day.year + day.month - 1  # since the year 0\n"
            "    return date(months // 12, months % 12 + 1, day.day)\n\n"
        )
        return (
            f"from datetime import date{', timedelta' if needed else ''}\n"
            f"{shifted if 'shifted' in data['there'] else ''}\n"
            f"today = {data['today']}\nresult = ({data['there']}).strftime('%m/%d/%Y')\n"
            f"options = {data['options']}\n{PRINT_LETTER}"
        )


def american(day: date) -> str:
    return f"{day.month:02d}/{day.day:02d}/{day.year}"


TURNS = {"left": 1j, "right": -1j, "around": -1}
WAYS = {"forward": 1, "backward": -1, "to the left": 1j, "to the right": -1j}


class Navigate(Generated):
    """Steps on a grid, with turns or without: whether they end where they began."""

    name = "navigate"
    STEPS = (3, 8)  # instructions before the way home begins

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        turning, home = rng.random() < 0.6, rng.random() < 0.5
        steps = [self.step(rng, turning) for _ in range(rng.randint(*self.STEPS))]
        steps[rng.randrange(len(steps))] = self.step(rng, turning=False)
        left = self.end(steps)  # home lies the other way, as seen by who has turned
        if left.real:
            steps.append(("backward" if left.real > 0 else "forward", int(abs(left.real))))
        if left.imag:
            steps.append(("to the right" if left.imag > 0 else "to the left", int(abs(left.imag))))
        if not turning:
            rng.shuffle(steps)
        if not home:  # one step too many, or too few
            i = rng.choice([i for i, (way, _) in enumerate(steps) if way in WAYS])
            way, n = steps[i]
            steps[i] = way, n + rng.choice([d for d in (-2, -1, 1, 2, 3) if n + d > 0])
        told = [f"Turn {w}." if w in TURNS else f"Take {n} step{'s'[: n > 1]} {w}." for w, n in steps]
        manner = "" if turning else " without ever turning"
        question = f"A robot on a large square grid follows these instructions{manner}: {' '.join(told)} "
        question += "Only a turn changes the way it faces, no step does. " * turning
        question += "Does it end on the square where it began?"
        return question, "Yes" if home else "No", {"steps": steps}

    @staticmethod
    def step(rng: random.Random, turning: bool) -> tuple[str, int]:
        if turning and rng.random() < 0.4:
            return rng.choice(list(TURNS)), 0
        return rng.choice(list(WAYS)), rng.randint(1, 9)

    @staticmethod
    def end(steps: Sequence[tuple[str, int]]) -> complex:
        """Where the steps lead, as seen from the first square by who faces as the robot does at the end."""
        place = 0j
        for way, n in steps:
            place = place / TURNS[way] if way in TURNS else place + n * WAYS[way]
        return place

    def program(self, data: dict) -> str:
        return (
            f"steps = {data['steps']}\n"
            'turns = {"left": 1j, "right": -1j, "around": -1}\n'
            'ways = {"forward": 1, "backward": -1, "to the left": 1j, "to the right": -1j}\n'
            "place, facing = 0, 1  # complex numbers: 1 is ahead at the beginning, 1j is to its left\n"
            "for way, count in steps:\n"
            "    if way in turns:\n"
            "        facing *= turns[way]\n"
            "    else:\n"
            "        place += count * ways[way] * facing\n"
            'print("Yes" if place == 0 else "No")'
        )


KINDS = {
    "fruits": ("pear", "plum", "mango", "fig", "banana", "apricot", "orange", "pineapple", "nectarine"),
    "vegetables": ("carrot", "cabbage", "leek", "turnip", "onion", "cauliflower", "beetroot", "parsnip"),
    "animals": ("rabbit", "hedgehog", "frog", "tortoise", "parrot", "goat", "lizard", "donkey", "hamster"),
    "musical instruments": ("violin", "trumpet", "harp", "clarinet", "drum", "accordion", "banjo", "flute"),
    "tools": ("hammer", "saw", "chisel", "spanner", "screwdriver", "rake", "trowel", "crowbar"),
    "pieces of furniture": ("chair", "stool", "wardrobe", "sofa", "desk", "armchair", "bookcase"),
}


class ObjectCounting(Generated):
    """Things of several kinds, of which some come and go: how many there are of one kind."""

    name = "object_counting"
    THINGS, CHANGES = (5, 10), (0, 3)

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        kinds = rng.sample(sorted(KINDS), 3)
        known = [thing for kind in kinds for thing in KINDS[kind]]
        have = {thing: rng.randint(1, 6) for thing in rng.sample(known, rng.randint(*self.THINGS))}
        asked = kinds[0]
        question = f"In a barn there are {', '.join(several(n, t) for t, n in have.items())}."
        count, changes = dict(have), []
        for _ in range(rng.randint(*self.CHANGES)):
            thing, n = rng.choice(sorted(count)), rng.randint(1, 3)
            n = -n if count[thing] > n and rng.random() < 0.5 else n
            count[thing] += n
            changes.append((thing, n))
            question += f" Then {several(abs(n), thing)} {'is' if abs(n) == 1 else 'are'} "
            question += "brought in." if n > 0 else "taken away."
        question += f" How many {asked} are there in the end?"
        of_kind = [thing for thing in have if thing in KINDS[asked]]
        answer = str(sum(count[thing] for thing in of_kind))
        return question, answer, {"have": have, "changes": changes, "asked": asked, "of_kind": of_kind}

    def program(self, data: dict) -> str:
        changes = "".join(
            f"count[{thing!r}] {'+' if n > 0 else '-'}= {abs(n)}\n" for thing, n in data["changes"]
        )
        name = data["asked"].split()[-1]
        return (
            f"count = {data['have']}\n{changes}"
            f"{name} = {data['of_kind']}  # those of them that are {data['asked']}\n"
            f"print(sum(count[thing] for thing in {name}))"
        )


def several(count: int, thing: str) -> str:
    """In words: "a pear", "an onion", "three figs".

    >>> several(1, "onion"), several(3, "fig")
    ('an onion', 'three figs')
    """
    if count == 1:
        return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    return f"{COUNTS[count]} {thing}s"


PENGUINS = ("Bosco", "Dorothea", "Edmund", "Fjord", "Gretel", "Isolde", "Nimbus", "Ottoline", "Pascal")
SEALS = ("Agnes", "Brutus", "Calypso", "Drake", "Esme", "Fergus", "Guinevere")


@dataclass(frozen=True)
class Column:
    """A column of numbers, and the words for having more or less of it."""

    name: str
    unit: str
    more: str
    less: str
    most: str
    least: str


Row = tuple[str, int, int, int]  # name, age, height, weight
COLUMNS = (
    Column("age", "years", "older", "younger", "oldest", "youngest"),
    Column("height", "cm", "taller", "shorter", "tallest", "shortest"),
    Column("weight", "kg", "heavier", "lighter", "heaviest", "lightest"),
)


@dataclass(frozen=True)
class Query:
    """A question about a table's rows, its answer, wrong answers, and the same question in Python."""

    text: str
    answer: str
    wrong: tuple[str, ...]
    code: str


class PenguinsInATable(Generated):
    """A table of penguins, perhaps changed, perhaps beside one of seals: a question about what it holds."""

    name = "penguins_in_a_table"
    ROWS, OPTIONS = (4, 6), 5

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        count = rng.randint(*self.ROWS)
        rows = self.animals(rng, rng.sample(PENGUINS, count))
        new, gone = rng.random() < 0.5, rng.random() < 0.4
        before, events = rows[: count - new], []
        question = "A keeper has this table of penguins:\n\n" + table(before)
        if new:
            events.append(f"penguins.append({rows[-1]})")
            question += f"\nA penguin joins them and gets the last row: {', '.join(map(str, rows[-1]))}."
        names = [row[0] for row in rows]
        if gone:
            name = rng.choice(names)
            rows = [row for row in rows if row[0] != name]
            events.append(f"penguins = [p for p in penguins if p[0] != {name!r}]")
            question += f"\nThe penguin {name} moves to another zoo, and its row is deleted."
        seals = []
        if rng.random() < 0.4:
            seals = self.animals(rng, rng.sample(SEALS, 4))
            question += f"\nThe keeper has another table, of seals:\n\n{table(seals)}"
        if seals and rng.random() < 0.6:
            both = "animals (penguins and seals together)"
            query = self.counting(rng, rows + seals, both, "penguins + seals")
        else:
            query = self.query(rng, rows, names)
        options, answer = shuffled(rng, query.answer, query.wrong)
        data = {"penguins": before, "events": events, "seals": seals, "options": options, "code": query.code}
        return f"{question}\n{query.text}\n{listed(options)}", answer, data

    @staticmethod
    def animals(rng: random.Random, names: list[str]) -> list[Row]:
        """Rows whose ages, heights and weights are all different, so that superlatives are clear."""
        columns = [rng.sample(values, len(names)) for values in (range(2, 20), range(45, 120), range(3, 40))]
        return list(zip(names, *columns, strict=True))

    def query(self, rng: random.Random, rows: list[Row], names: list[str]) -> Query:
        """A question about the penguins; `names` are those that are or were in their table."""
        kind = rng.choice((self.value, self.counting, self.total, self.ranked, self.placed))
        if kind == self.counting:
            return self.counting(rng, rows, "penguins", "penguins")
        if kind in (self.value, self.total):
            return kind(rng, rows)
        text, found, code = kind(rng, rows)
        wrong = [name for name in names if name != found]
        return Query(text, found, tuple(rng.sample(wrong, min(len(wrong), self.OPTIONS - 1))), code)

    def value(self, rng: random.Random, rows: list[Row]) -> Query:
        column, (name, *values) = rng.randrange(3), rng.choice(rows)
        text = f"What is the {COLUMNS[column].name} of {name}, in {COLUMNS[column].unit}?"
        code = f"next(p[{column + 1}] for p in penguins if p[0] == {name!r})"
        return self.number(rng, text, values[column], code)

    def total(self, rng: random.Random, rows: list[Row]) -> Query:
        column = rng.randrange(3)
        name, unit = COLUMNS[column].name, COLUMNS[column].unit
        text = f"What do the {name}s of all the penguins add up to, in {unit}?"
        right = sum(row[column + 1] for row in rows)
        return self.number(rng, text, right, f"sum(p[{column + 1}] for p in penguins)")

    def counting(self, rng: random.Random, rows: list[Row], what: str, where: str) -> Query:
        """How many are above a limit in one column, and perhaps below one in another."""
        a, b = rng.sample(range(3), 2)
        low, high = rng.choice(rows)[a + 1], rng.choice(rows)[b + 1] + 1
        text = f"How many {what} are {COLUMNS[a].more} than {low} {COLUMNS[a].unit}"
        found, code = [row for row in rows if row[a + 1] > low], f"p[{a + 1}] > {low}"
        if rng.random() < 0.5:
            text += f" and {COLUMNS[b].less} than {high} {COLUMNS[b].unit}"
            found, code = [row for row in found if row[b + 1] < high], f"{code} and p[{b + 1}] < {high}"
        return self.number(rng, f"{text}?", len(found), f"sum({code} for p in {where})")

    def number(self, rng: random.Random, text: str, right: int, code: str) -> Query:
        return Query(text, str(right), tuple(nearby(rng, right, self.OPTIONS - 1)), f"str({code})")

    @staticmethod
    def ranked(rng: random.Random, rows: list[Row]) -> tuple[str, str, str]:
        """Who comes first or second in a column, from above or from below."""
        column, rank, least = rng.randrange(3), rng.randrange(2), rng.random() < 0.5
        found = sorted(rows, key=lambda row: row[column + 1], reverse=not least)[rank]
        word = COLUMNS[column].least if least else COLUMNS[column].most
        backward = "" if least else ", reverse=True"
        code = f"sorted(penguins, key=lambda p: p[{column + 1}]{backward})[{rank}][0]"
        return f"Which penguin is the {'second-' * rank}{word}?", found[0], code

    @staticmethod
    def placed(rng: random.Random, rows: list[Row]) -> tuple[str, str, str]:
        """Who is first, second, last or last but one, in the table or in the alphabet."""
        place = rng.choice((0, 1, -1, -2))
        word = {0: "first", 1: "second", -1: "last", -2: "last but one"}[place]
        if rng.random() < 0.5:
            return f"Which penguin has the {word} row of the table?", rows[place][0], f"penguins[{place}][0]"
        text = f"Which penguin is {word} when the names are sorted from A to Z?"
        return text, sorted(rows)[place][0], f"sorted(p[0] for p in penguins)[{place}]"

    def program(self, data: dict) -> str:
        lists = {"penguins": data["penguins"], "seals": data["seals"]}
        rows = {name: "".join(f"    {row},\n" for row in rows) for name, rows in lists.items()}
        tables = "".join(f"{name} = [\n{text}]\n" for name, text in rows.items() if text)
        events = "".join(f"{line}\n" for line in data["events"])
        return (
            f"# name, age, height, weight\n{tables}{events}options = {data['options']}\n"
            f"result = {data['code']}\n{PRINT_LETTER}"
        )


def table(rows: list[Row]) -> str:
    head = ["name", *(f"{column.name} ({column.unit})" for column in COLUMNS)]
    return "".join(f"{', '.join(map(str, row))}\n" for row in (head, *rows))


COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "silver", "brown", "teal")
DESK = ("teapot", "scarf", "candle", "notebook", "marble", "spoon", "whistle", "thimble", "envelope", "brush")
DESK += ("button", "ribbon", "magnet", "keyring", "dice cup", "comb", "torch", "mug")


class ReasoningAboutColoredObjects(Generated):
    """Coloured things in a row: a colour by its place, or how many there are."""

    name = "reasoning_about_colored_objects"
    THINGS, OPTIONS = (4, 9), 6

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        n = rng.randint(*self.THINGS)
        palette = rng.sample(COLOURS, rng.randint(3, 6))
        row = [(rng.choice(palette), thing) for thing in rng.sample(DESK, n)]
        told = ", ".join(f"{'an' if c[0] in 'aeiou' else 'a'} {c} {t}" for c, t in row)
        asked, answer, code = (self.colour if rng.random() < 0.5 else self.count)(rng, row)
        if answer.isdigit():
            wrong = nearby(rng, int(answer), self.OPTIONS - 2)
        else:
            wrong = rng.sample([c for c in COLOURS if c != answer], self.OPTIONS - 1)
        options, letter = shuffled(rng, answer, wrong)
        question = f"From left to right, these things lie on a tray: {told}. {asked}\n{listed(options)}"
        return question, letter, {"row": row, "code": code, "options": options}

    @staticmethod
    def colour(rng: random.Random, row: list[tuple[str, str]]) -> tuple[str, str, str]:
        """Question, answer, and the lines of Python that find it."""
        last, side, kind = len(row) - 1, rng.choice((1, -1)), rng.randrange(4)
        if kind == 0:
            k = rng.randrange(min(len(row), len(ORDINALS)))
            text = f"What colour is the {ORDINALS[k]} thing from the right?"
            return text, row[last - k][0], f"result = row[-{k + 1}][0]"
        if kind == 1:
            i = rng.choice([i for i in range(len(row)) if 2 * i != last])  # from the middle both ends are far
            text = f"What colour is the thing farthest from the {row[i][1]}?"
            found = row[0][0] if 2 * i > last else row[last][0]
            code = "result = row[max(range(len(row)), key=lambda i: abs(i - place))][0]"
        elif kind == 2:
            i = rng.randrange(last) if side == 1 else rng.randint(1, last)
            way, sign = ("right", "+") if side == 1 else ("left", "-")
            text = f"What colour is the thing directly to the {way} of the {row[i][1]}?"
            found, code = row[i + side][0], f"result = row[place {sign} 1][0]"
        else:
            i = rng.randrange(len(row))
            text, found, code = f"What colour is the {row[i][1]}?", row[i][0], "result = row[place][0]"
        return text, found, f"place = [thing for _, thing in row].index({row[i][1]!r})\n{code}"

    @staticmethod
    def count(rng: random.Random, row: list[tuple[str, str]]) -> tuple[str, str, str]:
        """Question, answer, and the lines of Python that find it."""
        a, b, kind = rng.choice(row)[0], rng.choice(COLOURS), rng.randrange(4)
        i = rng.randrange(len(row))
        thing = row[i][1]
        where = f"place = [thing for _, thing in row].index({thing!r})\n"
        if kind == 0 and a != b:
            text = f"How many of the things are neither {a} nor {b}?"
            found = sum(c not in (a, b) for c, _ in row)
            code = f"sum(c not in ({a!r}, {b!r}) for c, _ in row)"
        elif kind == 1:
            text = f"How many {a} things lie to the right of the {thing}?"
            found, code = sum(c == a for c, _ in row[i + 1 :]), f"sum(c == {a!r} for c, _ in row[place + 1:])"
        elif kind == 2:
            text = f"How many things to the left of the {thing} are not {a}?"
            found, code = sum(c != a for c, _ in row[:i]), f"sum(c != {a!r} for c, _ in row[:place])"
        else:
            text = f"If all {a} things and the {thing} are taken away, how many things are left?"
            left = [t for c, t in row if c != a and t != thing]
            found, code = len(left), f"len([t for c, t in row if c != {a!r} and t != {thing!r}])"
        return text, str(found), (where if "place" in code else "") + f"result = str({code})"

    def program(self, data: dict) -> str:
        rows = "".join(f"    {each},\n" for each in data["row"])
        return f"row = [\n{rows}]\noptions = {data['options']}\n{data['code']}\n{PRINT_LETTER}"


TRADES = (
    ("Friends carry lanterns through the dark", "the {} lantern", COLOURS),
    ("Musicians pick instruments for a concert", "the {}", KINDS["musical instruments"]),
    ("Hikers share out what is in the cellar of a hut", "the {} jam", KINDS["fruits"]),
    ("Children draw masks for a play", "the {} mask", KINDS["animals"]),
)


class TrackingShuffledObjects(Generated):
    """People who swap what they have: what one of them has in the end."""

    def __init__(self, count: int, word: str):
        self.count, self.name = count, f"tracking_shuffled_objects_{word}_objects"

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        scene, form, pool = rng.choice(TRADES)
        people = rng.sample(PEOPLE, self.count)
        has = dict(zip(people, [form.format(t) for t in rng.sample(pool, self.count)], strict=True))
        start = dict(has)
        swaps = [tuple(rng.sample(people, 2)) for _ in range(rng.randint(self.count, 2 * self.count + 2))]
        for a, b in swaps:
            has[a], has[b] = has[b], has[a]
        told = ", ".join(f"{name} has {thing}" for name, thing in start.items())
        events = " ".join(f"{rng.choice(('Then', 'Next', 'After that'))} {a} and {b} swap." for a, b in swaps)
        who = rng.choice(people)
        options, answer = shuffled(rng, has[who], [t for t in start.values() if t != has[who]])
        question = f"{scene}. At first {told}. {events} What does {who} have in the end?\n{listed(options)}"
        return question, answer, {"has": start, "swaps": swaps, "who": who, "options": options}

    def program(self, data: dict) -> str:
        swaps = "".join(f"    {swap},\n" for swap in data["swaps"])
        return (
            f"things = {data['has']}\nfor a, b in [\n{swaps}]:\n"
            "    things[a], things[b] = things[b], things[a]\n"
            f"options = {data['options']}\nresult = things[{data['who']!r}]\n{PRINT_LETTER}"
        )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        DateUnderstanding(),
        Navigate(),
        ObjectCounting(),
        PenguinsInATable(),
        ReasoningAboutColoredObjects(),
        *(TrackingShuffledObjects(n, word) for n, word in ((3, "three"), (5, "five"), (7, "seven"))),
    )
}
