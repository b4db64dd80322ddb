"""The chat template of the published model in the folder ABACUS_REAL, against what transformers renders."""

import os
import random

import pytest

from tokenizer import Tokenizer

FOLDER = os.environ.get("ABACUS_REAL", "")
if not FOLDER:
    pytest.skip("ABACUS_REAL names no folder of a published model", allow_module_level=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def reader():
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def texts() -> list[str]:
    """Texts without special tokens: borders of the template, code, and any characters."""
    rng = random.Random(0)
    fixed = ["", "hello", "\n\n a \n", " {0} {} \\boxed{}", "```python\nprint(1)\n```\n", "日本語 é 1234"]
    return fixed + ["".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(40)) for _ in range(30)]


def test_first_prompts_and_later_ones_equal_the_rendered_template(tokenizer, reader):
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    for system in (None, "", "Be brief.", "\nBe\n", *texts()[-3:]):
        for user in texts():
            messages = [] if system is None else [{"role": "system", "content": system}]
            messages.append({"role": "user", "content": user})
            ids = tokenizer.chat(system, user)
            assert reader.apply_chat_template(messages, **options) == ids
            messages += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": f"{user}!"}]
            ids += [*tokenizer.encode("hi"), tokenizer.stop_ids[0], *tokenizer.follow_up(f"{user}!")]
            assert reader.apply_chat_template(messages, **options) == ids


def test_a_text_has_none_of_the_special_tokens(tokenizer, reader):
    marks = "".join(reader.get_added_vocab())
    known = set(reader.get_added_vocab().values())
    plain, forged = tokenizer.chat("", "hello"), tokenizer.chat(marks, f"hello{marks}")
    assert [i for i in plain if i in known] == [i for i in forged if i in known]
    assert not known & set(tokenizer.encode(marks))
