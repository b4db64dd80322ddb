"""Second programs that check an answer in another way.

A check begins with those literal assignments at the head of the reference program that it uses (`given`), so
that it is whole by itself. It does not solve the question again: it puts the answer back into what was asked,
or counts by brute force, and prints True for each condition that holds.
"""

import ast

from tasks import Problem


def given(program: str) -> dict[str, str]:
    """Name -> text of each literal assignment at the head of a program; imports between them are left out.
    {} where a program begins otherwise."""
    lines, found = program.split("\n"), {}
    for node in ast.parse(program).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        try:
            value = ast.literal_eval(node.value) if isinstance(target, ast.Name) else None
        except ValueError:
            break
        if value is None:
            break
        found[target.id] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    return found


def check(problem: Problem, program: str, answer: str) -> str | None:
    """A program that checks an answer to this question, given the reference program's names; None where the
    task has none."""
    body = CHECKS.get(problem.task)
    if body is None:
        return None
    imports, _, body = body.strip().rpartition("\n\n") if "import" in body else ("", "", body.strip())
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    head = [text for name, text in given(program).items() if name in used]
    below = "\n".join([*head, f"answer = {answer.strip()!r}", body])
    return f"{imports}\n\n{below}" if imports else below


_CELLS = "cells = [tuple(map(int, pair.split())) for pair in answer.split(', ')]\n"
_ROWS = "rows = [[int(x) for x in line.split()] for line in answer.split('\\n')]\n"

CHECKS = {  # task -> what follows its given values and `answer`; every line printed must be True
    "letter_counting": """
count = 0
for character in text:
    if character.lower() == letter:
        count += 1
print(count == int(answer))
""",
    "ransom_note": """
left = list(magazine)
missing = 0
for character in note:
    if character in left:
        left.remove(character)
    else:
        missing += 1
print((missing == 0) == (answer == "True"))
""",
    "isomorphic_strings": """
one = [first.index(character) for character in first]
two = [second.index(character) for character in second]
print((one == two) == (answer == "True"))
""",
    "leg_counting": """
left = int(answer)
for name, count in animals.items():
    for _ in range(count):
        left -= legs[name]
print(left == 0)
""",
    "number_filtering": """
kept = eval(answer)
larger = [n for n in numbers if float(n) > limit]
smaller = [n for n in numbers if float(n) < limit]
named = larger if side == "larger" else smaller
print(all((n in kept) == ((n in named) == (action == "Keep")) for n in numbers))
""",
    "complex_arithmetic": """
z = complex(answer.replace(" ", "").replace("i", "j"))
undone = {"+": z - b, "-": z + b, "*": z / b if b else a, "/": z * b}[operation]
print(abs(undone - a) < 1e-3)
""",
    "dice": """
import itertools
from fractions import Fraction

sums = [sum(faces) for faces in itertools.product(*[range(1, sides + 1) for sides in dice])]
print(Fraction(sum(s >= target for s in sums), len(sums)) == Fraction(answer))
""",
    "game24": """
import re

print(sorted(map(int, re.findall(r"\\d+", answer))) == sorted(numbers))
print(abs(eval(answer) - 24) < 1e-9)
""",
    "combinatorial_calculation": """
tokens = answer.strip("[]").split(", ")
print([int(t) for t in tokens if t.isdigit()] == numbers)
print(abs(eval("".join(tokens)) - target) < 1e-9)
""",
    "letters": """
positions = eval(answer.split("Positions: ")[1])
print(all(text[i - 1] == letter for i in positions))
print(len(text) - len(text.replace(letter, "")) == len(positions))
""",
    "eight_queens": _CELLS
    + """
print(len(cells) == len({r for r, c in cells}) == len({c for r, c in cells}) == 8)
print(all(abs(a - c) != abs(b - d) for a, b in cells for c, d in cells if (a, b) != (c, d)))
print(set(queens) <= set(cells) and not set(blocked) & set(cells))
""",
    "standard_sudoku": """
import re

rows = [[int(x) for x in re.findall(r"\\d", line)] for line in answer.split("\\n")]
blocks = [[rows[r + i][c + j] for i in range(3) for j in range(3)] for r in (0, 3, 6) for c in (0, 3, 6)]
print(all(sorted(unit) == list(range(1, 10)) for unit in [*rows, *zip(*rows), *blocks]))
print(all(g in (0, v) for given, row in zip(grid, rows) for g, v in zip(given, row)))
""",
    "gridworld": """
path = eval(answer)
print(all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in zip(path, path[1:])))
print(all(grid[r][c] != "#" for r, c in path) and grid[path[0][0]][path[0][1]] == "S")
print({(r, c) for r, row in enumerate(grid) for c, mark in enumerate(row) if mark == "G"} <= set(path))
""",
    "pattern_recognition": """
row, column = map(int, answer.split(","))
found = "".join(grid[row + r][column + c] for r, c in offsets)
print(all(w in ("?", f) for w, f in zip(wanted, found)) if wanted else len(set(found)) == 1)
""",
    "word_sorting": """
found = answer.split()
print(all(a <= b for a, b in zip(found, found[1:])))
print(sorted(words) == sorted(found))
""",
    "base_conversion": "print(int(answer, target) == int(number, source))",
    "count_bits": """
left = n
for _ in range(int(answer)):
    left &= left - 1  # takes one 1 away
print(left == 0 and n.bit_count() == int(answer))
""",
    "cryptarithm": """
digits = dict(pair.split("=") for pair in answer.split(","))
value = lambda word: int("".join(digits[letter] for letter in word))
print(sum(map(value, words)) == value(result))
print(len(set(digits.values())) == len(digits))
print(all(digits[word[0]] != "0" for word in [*words, result]))
""",
    "gcd": """
import math

print(all(n % int(answer) == 0 for n in numbers))
print(math.gcd(*[n // int(answer) for n in numbers]) == 1)
""",
    "lcm": """
import math

print(all(int(answer) % n == 0 for n in numbers))
print(math.gcd(*[int(answer) // n for n in numbers]) == 1)
""",
    "graph_color": """
import json

color = {int(v): c for v, c in json.loads(answer).items()}
print(set(color) == set(vertices) and set(color.values()) <= set(colors))
print(all(color[a] != color[b] for a, b in edges))
""",
    "group_anagrams": """
import json

groups = json.loads(answer)
print(sorted(word for group in groups for word in group) == sorted(words))
print(all(sorted(word) == sorted(group[0]) for group in groups for word in group))
""",
    "jugs": """
import json

held = dict.fromkeys(size, 0)
for move in json.loads(answer):
    verb, what = move.split()
    if verb == "pour":
        a, b = what.split("->")
        amount = min(held[a], size[b] - held[b])
        held[a], held[b] = held[a] - amount, held[b] + amount
    else:
        held[what] = size[what] if verb == "fill" else 0
print(target in held.values())
""",
    "kakurasu": _ROWS
    + """
print([sum(j for j, x in enumerate(row, 1) if x) for row in rows] == row_sums)
print([sum(i for i, x in enumerate(column, 1) if x) for column in zip(*rows)] == column_sums)
""",
    "mini_sudoku": _ROWS
    + """
blocks = [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
print(all(sorted(unit) == [1, 2, 3, 4] for unit in [*rows, *zip(*rows), *blocks]))
print(all(g in (0, v) for given, row in zip(grid, rows) for g, v in zip(given, row)))
""",
    "number_format": """
values = [float(n.replace(",", "")) for n in numbers]
print(any(abs(float(answer) - v) < 1e-3 for v in values))
gaps = [float(answer) - v if wanted == "largest" else v - float(answer) for v in values]
print(all(gap > -1e-3 for gap in gaps))
""",
    "number_sorting": """
found = [float(n) for n in eval(answer)]
pairs = list(zip(found, found[1:]))
print(all(a <= b for a, b in pairs) if order == "ascending" else all(a >= b for a, b in pairs))
print(sorted(found) == sorted(map(float, numbers)))
""",
    "palindrome_generation": """
print(answer == answer[::-1])
print(sorted(answer) == sorted(letters))
""",
    "palindrome_partitioning": """
import json

found = json.loads(answer)
print(all("".join(parts) == text for parts in found))
print(all(part == part[::-1] for parts in found for part in parts))
print(len({tuple(parts) for parts in found}) == len(found))
""",
    "path_star": """
path = answer.split()
print(path[0] == start and path[-1] == goal)
print(all(f"{a} {b}" in edges.split("|") for a, b in zip(path, path[1:])))
""",
    "polynomial_multiplication": """
from sympy import sympify

left, right = sympify(text), sympify(answer)
names = sorted(left.free_symbols, key=str)
points = [{name: k + i for i, name in enumerate(names)} for k in range(2, 12)]
print(all(left.subs(point) == right.subs(point) for point in points))
""",
    "prime_factorization": """
import math

factors = [int(f) for f in answer.split(" × ")]
print(math.prod(factors) == n)
print(all(f % d for f in factors for d in range(2, math.isqrt(f) + 1)))
""",
    "quantum_lock": """
value, light = start, "red"
rules = {name: (verb, k, when) for name, verb, k, when in buttons}
for name in answer.split(" → "):
    verb, k, when = rules[name]
    if when in (light, "any"):
        value = {"add": value + k, "subtract": value - k, "multiply": value * k}[verb]
        light = "green" if light == "red" else "red"
print(value == target)
""",
    "simple_geometry": "print(abs(sum(known) + float(answer) - 180 * (sides - 2)) < 0.01)",
    "simple_integration": """
from sympy import Symbol, diff, simplify, sympify

back = diff(sympify(answer.removesuffix("+ C")), Symbol(variable))
print(simplify(back - sympify(text)) == 0)
""",
    "spell_backward": """
print(len(answer) == len(word))
print(all(a == b for a, b in zip(answer, reversed(word))))
""",
    "spiral_matrix": """
found, rows = answer.split(), text.split("\\n")
print(sorted(found) == sorted(text.split()))
print(" ".join(found[: len(rows[0].split())]) == rows[0].strip())
""",
    "survo": _ROWS
    + """
print(all(sum(row[:-1]) == row[-1] for row in rows))
print(all(sum(column[:-1]) == column[-1] for column in zip(*rows)))
print(all(g in (0, v) for given, row in zip(matrix, rows) for g, v in zip(given, row)))
""",
    "word_sequence_reversal": """
found = answer.split(", ")
print(found[0] == words[-1] and found[-1] == words[0] and len(found) == len(words))
print(all(a == b for a, b in zip(reversed(found), words)))
""",
}
