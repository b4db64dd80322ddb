"""Our comparison of mathematical answers beside Math-Verify's, and ours on mutated answers.

    pip install math-verify
    python bench/graders.py                       # agreement with hand-made pairs, median time per pair
    python bench/graders.py --mutations 100000    # exceptions, and the slowest comparison

The pairs are those of tests/tasks: test_math.py, test_math_kinds.py and math_pairs.py. A mutation is a side
of a pair in which up to four places were deleted, doubled or replaced by a piece of mathematics; it is
compared with a side of any pair.
"""

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tasks")]

import math_pairs  # noqa: E402
import test_math  # noqa: E402
import test_math_kinds  # noqa: E402

from tasks import math_equal  # noqa: E402

Pair = tuple[str, str, bool]  # answer, right, whether they are the same
PIECES = [
    r"\frac",
    r"\sqrt",
    r"\text{",
    r"\left",
    r"\right",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\\",
    r"\pm",
]
PIECES += [
    r"\cup",
    r"\in",
    r"\sin",
    r"\ln",
    r"\log_",
    r"\arctan",
    r"\overline{",
    r"\binom",
    r"\lfloor",
    r"\rfloor",
]
PIECES += [
    r"\{",
    r"\}",
    r"\$",
    r"\infty",
    r"\pi",
    "0",
    "1",
    "99",
    "9^9",
    "1e9",
    ".5",
    "1,000",
    r"^\circ",
    "^{",
    "_{",
]
PIECES += [*"!|()[]{}^_&,;:=<>≤≠%$€½²√×°xyeiI \0\udcff", "oo", "!!", "||", " and ", " or ", " cm", "m/s"]


def tables() -> dict[str, list[Pair]]:
    """The pairs by the file that they stand in."""
    first = [(a, b, same) for same in (True, False) for a, b in (test_math.DIFFERENT, test_math.SAME)[same]]
    kinds = [
        (a, b, same)
        for same, table in ((True, test_math_kinds.SAME), (False, test_math_kinds.DIFFERENT))
        for pairs in table.values()
        for a, b in pairs
    ]
    lists = {"by hand": math_pairs.FIRST, "fresh": math_pairs.FRESH}
    return {"test_math": first, "kinds": kinds} | lists


def math_verify() -> Callable[[str, str], bool]:
    if importlib.util.find_spec("math_verify") is None:
        raise SystemExit("math-verify is not installed; pip install math-verify, or --against none")
    from math_verify import parse, verify

    return lambda answer, right: bool(verify(parse(f"${right}$"), parse(f"${answer}$")))


def compare(same: Callable[[str, str], bool], pairs: list[Pair]) -> tuple[int, int, float]:
    """(equal pairs that are taken, unequal ones that are refused, median milliseconds per pair)."""
    agreed, times = {True: 0, False: 0}, []
    for answer, right, truth in pairs:
        began = time.perf_counter()
        verdict = same(answer, right)
        times.append(1000 * (time.perf_counter() - began))
        agreed[truth] += verdict == truth
    return agreed[True], agreed[False], statistics.median(times)


def agreement(against: str) -> None:
    graders = {"ours": math_equal} | ({"Math-Verify": math_verify()} if against != "none" else {})
    print("| pairs | grader | equal ones taken | unequal ones refused | median ms per pair |")
    print("|---|---|---|---|---|")
    for name, pairs in tables().items():
        equal = sum(same for *_, same in pairs)
        for grader, same in graders.items():
            compare(same, pairs[:3])  # what is imported late
            taken, refused, milliseconds = compare(same, pairs)
            numbers = f"{taken} of {equal} | {refused} of {len(pairs) - equal} | {milliseconds:.2f}"
            print(f"| {name} | {grader} | {numbers} |", flush=True)


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Pairs of a mutated answer and another one."""
    rng = random.Random(seed)
    sides = [side for pairs in tables().values() for *both, _ in pairs for side in both]
    for _ in range(count):
        text = rng.choice(sides)
        for _ in range(rng.randint(1, 4)):
            i, j = sorted(rng.choices(range(len(text) + 1), k=2))
            piece = rng.choice((rng.choice(PIECES), rng.choice(sides), text[i:j]))
            text = rng.choice((text[:i] + text[j:], text[:i] + piece + text[i:], text[:i] + piece + text[j:]))
        yield text, rng.choice(sides)


def fuzz(count: int, seed: int = 0) -> tuple[int, float, str]:
    """(exceptions, seconds of the slowest comparison, its texts)."""
    exceptions, slowest = 0, (0.0, "")
    for a, b in mutations(count, seed):
        began = time.perf_counter()
        try:
            math_equal(a, b)
        except Exception as error:  # noqa: BLE001  # any is a finding
            exceptions += 1
            print(f"{type(error).__name__}: {error}: {a!r} / {b!r}")
        slowest = max(slowest, (time.perf_counter() - began, f"{a!r} / {b!r}"))
    return exceptions, *slowest


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=("math-verify", "none"), default="math-verify")
    parser.add_argument("--mutations", type=int, default=0, help="compare so many mutated answers instead")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    chosen = parser.parse_args(argv)
    if not chosen.mutations:
        agreement(chosen.against)
        return
    exceptions, seconds, texts = fuzz(chosen.mutations, chosen.seed)
    print(f"{chosen.mutations:,} mutations: {exceptions} exceptions, the slowest {seconds:.2f} s: {texts}")


if __name__ == "__main__":
    main()
