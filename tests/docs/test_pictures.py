"""The pictures of the docs are what docs/pictures.py draws, and the docs show each of them."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from docs import pictures

DOCS = pictures.Path(pictures.__file__).parent


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_committed_picture_is_what_the_script_draws(name: str) -> None:
    drawn = pictures.PICTURES[name]()
    assert (DOCS / name).read_text() == drawn, "run python docs/pictures.py"
    ElementTree.fromstring(drawn)
    assert any(f"]({name})" in page.read_text() for page in DOCS.glob("*.md"))


def test_the_recorded_rollout_is_one_that_the_sampler_allows() -> None:
    """A slot is fed before it decodes, decodes before it is parked, and is fed the result after that."""
    for row in pictures.ROWS:
        assert re.fullmatch(r"(Fd+(p+Fd+)*)+\.*", row)
        assert sum(steps for _, _, steps in pictures.spells(row)) == len(row.rstrip("."))


def test_the_states_of_a_slot_by_hand() -> None:
    states = [("admit", 0, 1), ("decode", 1, 2), ("wait", 3, 2), ("result", 5, 1), ("decode", 6, 1)]
    assert list(pictures.spells("FddppFdFd..")) == [*states, ("admit", 7, 1), ("decode", 8, 1)]
