"""docs/tutorial.md: its blocks run in order in one namespace, and print what the page shows."""

import code
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"
FENCE = re.compile(r"^(`{3,})(\S+)( sampled)?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+|\d+")
FRACTION = re.compile(r"-?\d+\.\d+")


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
    found, expected = (list(map(float, FRACTION.findall(text))) for text in (printed, shown))
    assert found == pytest.approx(expected, rel=1e-3, abs=1.1e-3)
    assert FRACTION.sub("N", printed) == FRACTION.sub("N", shown)


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
    ("printed", "shown", "sampled", "same"),
    [
        ("loss 1.2341 of 010 [1]", "loss 1.2344 of 010 [1]", False, True),
        ("loss 1.237 of 010 [1]", "loss 1.234 of 010 [1]", False, False),
        ("loss 1.234 of 011 [1]", "loss 1.234 of 010 [1]", False, False),
        ("0.0 loss 1.2 [11]", "1.0 loss 3.4 [2, 'a']", True, True),
        ("0.0 gain 1.2 [1]", "0.0 loss 1.2 [1]", True, False),
        ("loss 1.2\nloss 1.2", "loss 1.2", True, False),
    ],
)
def test_what_is_the_same(printed: str, shown: str, sampled: bool, same: bool) -> None:
    if same:
        check(printed, shown, sampled)
    else:
        with pytest.raises(AssertionError):
            check(printed, shown, sampled)
