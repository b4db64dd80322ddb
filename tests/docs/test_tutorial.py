"""docs/tutorial.md: its blocks run in order in one namespace, and print what the page shows."""

import code
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"
FENCE = re.compile(r"^(`{3,})(\S+)( sampled)?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+|\d+")


def pasted(console: code.InteractiveConsole, block: str) -> None:
    """Enter a block as a reader pastes it: line by line, and Enter at the end of a loop."""
    more = False
    for line in [*block.splitlines(), ""]:
        more = console.push(line)
    assert not more


def shape(line: str) -> str:
    """A line of sampled output before its first bracket or quote, without its numbers."""
    return NUMBER.sub("N", re.split(r"[\['\"]", line)[0])


def check(printed: str, shown: str, sampled: bool) -> None:
    """Sampled output has the shape that is shown. Other output is equal, fractions to three digits."""
    if sampled:
        assert list(map(shape, printed.splitlines())) == list(map(shape, shown.splitlines()))
        return
    found, expected = ([float(x) for x in NUMBER.findall(s) if "." in x] for s in (printed, shown))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
    fraction = re.compile(r"-?\d+\.\d+")
    assert fraction.sub("N", printed) == fraction.sub("N", shown)


def test_every_block_prints_what_the_page_shows(capsys) -> None:
    """A console prints an exception and goes on, so that stderr must stay empty."""
    console, threads = code.InteractiveConsole({"__name__": "__console__"}), torch.get_num_threads()
    blocks = [(m[2], bool(m[3]), m[4]) for m in FENCE.finditer(PAGE.read_text())]
    assert [kind for kind, *_ in blocks] == ["python", "text"] * (len(blocks) // 2) and len(blocks) >= 20
    try:
        for (_, _, block), (_, sampled, shown) in zip(blocks[::2], blocks[1::2], strict=True):
            pasted(console, block)
            printed, errors = capsys.readouterr()
            assert not errors
            check(printed, shown, sampled)
    finally:
        torch.set_num_threads(threads)
        if "sandbox" in console.locals:
            console.locals["sandbox"].close()


@pytest.mark.parametrize(
    ("printed", "sampled"),
    [
        ("loss 1.251 of 010 [1]\n", True),
        ("loss 1.234 of 011 [1]\n", False),
        ("loss 1.237 of 010 [1]\n", False),
        ("loss 1.234 of 010 [1]\nmore\n", True),
        ("gain 1.234 of 010 [1]\n", True),
    ],
)
def test_what_differs_is_seen(printed: str, sampled: bool) -> None:
    """The first case is another sample, which is right; the others are wrong."""
    shown = "loss 1.234 of 010 [0]\n" if sampled else "loss 1.234 of 010 [1]\n"
    if printed.startswith("loss 1.251"):
        check(printed, shown, sampled)
    else:
        with pytest.raises(AssertionError):
            check(printed, shown, sampled)
