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
    """A slot is fed a prompt, decodes, waits for its program (unless it ends at once), is fed its output."""
    for row in pictures.ROWS:
        assert re.fullmatch(r"(ad+(w*rd+)*)+\.*", row)
    assert "".join(pictures.ROWS).count("a") == 9


def test_the_states_of_a_slot_by_hand() -> None:
    assert list(pictures.spells("addwr.")) == [("a", 0, 1), ("d", 1, 2), ("w", 3, 1), ("r", 4, 1)]
