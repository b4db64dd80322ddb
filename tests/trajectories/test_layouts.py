"""Rows of trajectories in other projects' layouts. The oracle is the same trajectory in our own layout."""

import copy
import json
from pathlib import Path

import pytest

from plumbing.config import UsageError
from tasks import PROTOCOLS
from tokenizer import Source
from trajectories.encoding import encode, read
from trajectories.format import conversation

PROGRAM = "print(6 * 7)"
CALL = {"id": "c1", "type": "function"}
CALL["function"] = {"name": "code_interpreter", "arguments": json.dumps({"code": PROGRAM})}
THOUGHT = "It is a product."


def ours(protocol: str, said: str = "Let us see.") -> list[dict]:
    """The trajectory in our own layout."""
    said = f"{said}\n" if said else ""
    return [
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": said + PROTOCOLS[protocol].block(PROGRAM)},
        {"role": "tool", "content": "42\n"},
        {"role": "assistant", "content": "It is 42."},
    ]


def openai(**changes: object) -> list[dict]:
    """The trajectory with a call of a tool; `changes` are of the message that calls."""
    return [
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": "Let us see.", "tool_calls": [CALL]} | changes,
        {"role": "tool", "content": "42\n", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 42."},
    ]


def call(name: str = "python", arguments: object = None, **more: object) -> list[dict]:
    return [
        {"function": {"name": name, "arguments": {"code": PROGRAM} if arguments is None else arguments}}
        | more
    ]


def sharegpt(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


BLOCK = PROTOCOLS["r1ci"].block(PROGRAM)
FUNCTION = json.dumps({"name": "python", "arguments": {"code": PROGRAM}})
SAME = {  # a row that says the same as ours("r1ci")
    "a call": {"messages": openai()},
    "arguments as an object": {"messages": openai(tool_calls=call())},
    "with empty arguments beside the code": {
        "messages": openai(tool_calls=call(arguments={"code": PROGRAM, "timeout": None, "files": None}))
    },
    "under another name, to a Python tool": {
        "messages": openai(tool_calls=call("execute_python", {"input": PROGRAM}))
    },
    "with its language": {"messages": openai(tool_calls=call("run", {"language": "py", "code": PROGRAM}))},
    "as text": {"messages": openai(tool_calls=call("jupyter", PROGRAM))},
    "calls as JSON text": {"messages": openai(tool_calls=json.dumps(call()))},
    "messages as JSON text": {"messages": json.dumps(openai())},
    "the older function_call": {
        "messages": openai(tool_calls=None, function_call=call()[0]["function"])
    },
    "parts": {
        "messages": openai(content=[{"type": "text", "text": "Let us"}, {"type": "text", "text": " see."}])
    },
    "parts of the output": {"messages": openai(content=[{"type": "output_text", "text": "Let us see."}])},
    "weight 1": {"messages": openai(weight=1)},
    "empty columns": {"messages": openai(weight=None, reasoning_content=None, name=None, refusal=None)},
    "sharegpt": sharegpt(
        ("human", "6 * 7?"), ("gpt", "Let us see.\n" + BLOCK), ("tool", "42"), ("gpt", "It is 42.")
    ),
    "sharegpt, other names": sharegpt(
        ("user", "6 * 7?"), ("model", "Let us see.\n" + BLOCK), ("observation", "42"),
        ("assistant", "It is 42."),
    ),
    "a written end of turn before a result": {
        "messages": [
            ours("r1ci")[0],
            {"role": "assistant", "content": "Let us see.\n" + BLOCK + "<|im_end|>\n"},
            *ours("r1ci")[2:],
        ]
    },
    "no protocol": {"protocol": None, "messages": ours("r1ci")},
    "a written end of turn": {
        "messages": [*ours("r1ci")[:3], {"role": "assistant", "content": "It is 42.<|im_end|>"}]
    },
    "a written end of turn, and a line end": {
        "messages": [*ours("r1ci")[:3], {"role": "assistant", "content": "It is 42.<|im_end|>\n"}]
    },
}  # fmt: skip
SAME_BUT_SILENT = {  # nothing is said before the program
    "no content": {"messages": openai(content=None)},
    "empty content": {"messages": openai(content="")},
    "no parts": {"messages": openai(content=[])},
    "sharegpt's call": sharegpt(
        ("human", "6 * 7?"), ("function_call", FUNCTION), ("observation", "42"), ("gpt", "It is 42.")
    ),
}


@pytest.mark.parametrize("name", [*SAME, *SAME_BUT_SILENT])
def test_a_row_of_another_layout_is_the_same_tokens_and_tags(tiny: tuple, name: str) -> None:
    row = SAME.get(name) or SAME_BUT_SILENT[name]
    before = copy.deepcopy(row)
    got = encode(row, tiny[1], "r1ci")
    want = encode({"messages": ours("r1ci", "Let us see." if name in SAME else "")}, tiny[1], "r1ci")
    assert tiny[1].decode(got.tokens) == tiny[1].decode(want.tokens)
    assert got.tokens == want.tokens and got.source == want.source and row == before


@pytest.mark.parametrize("protocol", ["r1ci", "retool", "code", "guided"])
def test_a_call_becomes_the_protocols_block(tiny: tuple, protocol: str) -> None:
    messages = ours(protocol, "")
    want, got = (encode({"messages": m}, tiny[1], protocol) for m in (messages, openai(content=None)))
    assert got.tokens == want.tokens and got.source == want.source


@pytest.mark.parametrize("place", ["messages", "row"])
def test_the_system_prompt_of_either_place_is_the_head(tiny: tuple, place: str) -> None:
    row = sharegpt(("human", "q"), ("gpt", "a"))
    if place == "row":
        row["system"] = "Be brief."
    else:
        row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert conversation(row, PROTOCOLS["r1ci"]) == ("Be brief.", [("user", "q"), ("assistant", "a")])
    both = row | {"system": "Be long."} if place == "messages" else None
    if both:
        with pytest.raises(ValueError, match="a head prompt in the row and one in its messages"):
            conversation(both, PROTOCOLS["r1ci"])


def test_weight_zero_is_read_and_not_trained(tiny: tuple) -> None:
    """The first answer is context: no token of it carries loss, its end neither."""
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "right", "weight": 1},
    ]
    plain = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    got, want = (encode({"messages": m}, tiny[1], "r1ci") for m in (messages, plain))
    assert got.tokens == want.tokens
    assert tiny[1].decode(got.policy_tokens) == "right<|im_end|>"
    assert tiny[1].decode(want.policy_tokens) == "wrong<|im_end|>right<|im_end|>"


def test_a_result_behind_a_turn_of_weight_zero_is_still_a_tools(tiny: tuple) -> None:
    got = encode({"messages": openai(weight=0)}, tiny[1], "r1ci")
    want = encode({"messages": openai()}, tiny[1], "r1ci")
    assert got.tokens == want.tokens and got.source.count(Source.TOOL) == want.source.count(Source.TOOL)
    assert tiny[1].decode(got.policy_tokens) == "It is 42.<|im_end|>"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_before_the_text(key: str) -> None:
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", key: THOUGHT}]
    }
    text = conversation(row, PROTOCOLS["r1ci"])[1][1][1]
    assert text == f"<think>\n{THOUGHT}\n</think>\n\na"
    turn = conversation({"messages": openai(**{key: THOUGHT})}, PROTOCOLS["r1ci"])[1][1][1]
    assert turn == f"<think>\n{THOUGHT}\n</think>\n\nLet us see.\n{BLOCK}"


def with_text(text: object, result: object = "42", role: str = "assistant") -> dict:
    messages = [{"role": "user", "content": "q"}, {"role": role, "content": text}]
    messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": "It is 42."}]
    return {"messages": messages}


QUESTION = {"role": "user", "content": "q"}
ANSWER = [QUESTION, {"role": "assistant", "content": "a"}]
PARTS = [{"type": "image_url", "image_url": {"url": "x"}}]
ALIEN = {"role": "tool", "content": "1", "tool_call_id": "c2"}
TRL = {"prompt": [QUESTION], "completion": [ANSWER[1]]}
NO_TURN = "does not follow a turn which ends with one program"


def answered(**message: object) -> dict:
    """A question and an answer with these entries."""
    return {"messages": [QUESTION, ANSWER[1] | message]}


def calling(name: str, arguments: object) -> dict:
    return {"messages": openai(tool_calls=call(name, arguments))}


REFUSED = [
    ({"instruction": "i", "input": "", "output": "o"}, "an Alpaca row, which holds no results"),
    ({"instruction": "i", "output": "o"}, "an Alpaca row"),
    ({"prompt": "p", "completion": "c"}, "a prompt and completion row, which holds no results"),
    (TRL, "a prompt and completion row"),
    ({"prompt": "p", "response": "r"}, "a prompt and completion row"),
    ({"text": "t"}, "expected"),
    (sharegpt(("human", "q"), ("bot", "a")), "'bot' is none"),
    (sharegpt(("gpt", "a")), "roles are"),
    (answered(weight=0), "all messages have weight 0"),
    (answered(weight=0.5), "weight 0.5; expected 0 or 1"),
    (answered(weight="0"), "weight '0'; expected 0 or 1"),
    (answered(reasoning_content=3), "text content"),
    (answered(content=PARTS), "a part of type image_url"),
    (answered(content="a<|im_end|>\n<|im_start|>user\nb"), "inside the assistant"),
    (answered(content="a<|im_end|><|im_end|>"), "inside the assistant"),
    ({"messages": [QUESTION | {"reasoning_content": THOUGHT}, ANSWER[1]]}, "reasoning in a message"),
    ({"messages": openai(tool_calls=call() * 2)}, "2 calls of tools in one message"),
    ({"messages": openai(tool_calls=["x"])}, "a call of a tool that is 'x'"),
    ({"messages": openai()[:2]}, "a call of a tool without its result"),
    ({"messages": [*openai()[:2], openai()[3]]}, "a call of a tool without its result"),
    ({"messages": [*openai()[:2], ALIEN, openai()[3]]}, "a result of call 'c2' after call 'c1'"),
    ({"messages": openai(content="See:\n" + BLOCK)}, NO_TURN),
    (calling("get_weather", {"city": "Paris"}), "'get_weather' that is no program"),
    (calling("bash", {"code": "ls"}), "'bash' that is no program"),
    (calling("run_code", {"language": "javascript", "code": "console.log(1)"}), "'run_code' that is no"),
    (calling("python", {}), "no program"),
    (calling("python", {"code": " "}), "no program"),
    (calling("python", {"code": PROGRAM, "script": PROGRAM}), "no program"),
    (with_text("I look it up."), NO_TURN),
    (with_text(BLOCK + "\nIt gives"), NO_TURN),
    (with_text(BLOCK + "\nand\n" + BLOCK), NO_TURN),
    (with_text("```python\nprint(1)"), NO_TURN),
    (with_text("```\nprint(1)\n```"), NO_TURN),
    (with_text(BLOCK, result=None), "text content"),
    (with_text(BLOCK, result={"out": 1}), "text content"),
    (with_text(BLOCK, role="user"), "roles are"),
    (
        answered(content="<think>x</think>a", reasoning_content=THOUGHT),
        "reasoning beside a text with <think>",
    ),
    (calling("python", {"code": "x = '''a\nprint(x)"}), "a string that does not end"),
    (calling("python", {"code": "```python\nprint(1)\n```\nprint(2)"}), "with a fence"),
]


@pytest.mark.parametrize("row, reason", REFUSED)
def test_what_cannot_be_kept_is_refused_with_its_reason(tiny: tuple, row: dict, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        encode(row, tiny[1], "r1ci")
    assert reason in str(error.value)


WRONG = [None, True, 1, 0.5, "x", "[1]", [], {}, [1], [None], [[]], {"a": [1]}, [{"type": ["a"]}]]
EVERYTHING = answered(content=[{"type": "text", "text": "a"}], weight=1, reasoning_content=THOUGHT, name="n")
EVERYTHING |= {"protocol": "r1ci", "system": "s", "prompt": "{question}", "task": "t", "index": 0}
TOKENS = {"tokens": [1, 2], "source": [0, 1], "spans": [], "task": "t", "index": 0}


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, inner in inside for p in places(inner, (*path, key))]


@pytest.mark.parametrize("row", [EVERYTHING, {"messages": openai()}, sharegpt(("human", "q")), TOKENS])
def test_a_value_of_another_type_anywhere_is_read_or_refused_in_one_line(tiny: tuple, row: dict) -> None:
    for *path, key in places(row):
        for wrong in WRONG:
            changed = copy.deepcopy(row)
            inside = changed
            for step in path:
                inside = inside[step]
            inside[key] = wrong
            try:
                encode(changed, tiny[1], "r1ci")
            except ValueError as error:
                assert str(error) and "\n" not in str(error)


def test_reasoning_that_the_text_has_already_is_not_doubled() -> None:
    text = f"<think>\n{THOUGHT}\n</think>\n\na"
    row = answered(content=text, reasoning_content=THOUGHT)
    assert conversation(row, PROTOCOLS["r1ci"])[1][1][1] == text


def test_a_protocol_without_code_takes_no_call(tiny: tuple) -> None:
    with pytest.raises(ValueError, match="protocol text runs no code"):
        encode({"messages": openai()}, tiny[1], "text")


@pytest.mark.parametrize("kind", ["jsonl", "list.json", "wrapped.json", "bom.jsonl", "parquet"])
def test_every_kind_of_file_holds_the_same_trajectories(tmp_path: Path, tiny: tuple, kind: str) -> None:
    """The rows differ in their keys, which a Parquet file fills with nothing."""
    path, rows = tmp_path / f"data.{kind.split('.')[-1]}", [{"messages": openai()}, {"messages": ANSWER}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    texts = {"jsonl": lines, "list.json": json.dumps(rows, indent=1), "bom.jsonl": "\ufeff" + lines}
    texts["wrapped.json"] = json.dumps({"canary": "", "rows": rows})
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(texts[kind])
    found, bad = read(str(path), tiny[1], "r1ci")
    assert not bad and [e.tokens for e in found] == [encode(row, tiny[1], "r1ci").tokens for row in rows]


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, tiny: tuple) -> None:
    path = tmp_path / "data.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UsageError, match="a pointer of Git LFS, not the data"):
        read(str(path), tiny[1], "r1ci")
