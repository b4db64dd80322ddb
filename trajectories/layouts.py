"""Rows of other projects' files of trajectories as our messages: role and content, a message per result.

    messages({"messages": [...]}, shape)          OpenAI's, with tool_calls; our own
    messages({"conversations": [...]}, shape)     ShareGPT's: from and value

A call of a Python tool becomes the protocol's code block, `reasoning_content` <think>...</think> before the
text. An assistant's message of weight 0 gets the role "context": it is read, not trained.
"""

import json
import re

from tasks import Protocol
from tasks.blocks import split_code

LISTS = ("messages", "conversations", "conversation")
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
REASONING = ("reasoning_content", "reasoning", "thinking")
CODE = ("code", "python_code", "python", "script", "program", "source")
PYTHON = re.compile(r"python|code|interpreter|jupyter|\bpy\b", re.IGNORECASE)
OTHER = re.compile("bash|shell|terminal|sql|javascript|typescript|node", re.IGNORECASE)


def messages(record: dict, shape: Protocol) -> list[dict]:
    """The messages of a row: role (system, user, assistant, context, tool) and content, a text. Raises
    ValueError for a row that holds none, and for what cannot be kept."""
    name = next((name for name in LISTS if record.get(name) is not None), None)
    found = _parsed(record[name]) if name else None
    if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
        raise ValueError(_no_messages(record))
    head = record.get("system")
    turns = [] if not isinstance(head, str) or not head.strip() else [{"role": "system", "content": head}]
    call: dict = {}  # that of the message before
    for message in found:
        turn, next_call = _turn(message, shape, call)
        if call and turn["role"] != "tool":
            break
        call = next_call
        turns.append(turn)
    if call:
        raise ValueError("a call of a tool without its result")
    if [turn["role"] for turn in turns[:2]] == ["system", "system"]:
        raise ValueError("a head prompt in the row and one in its messages; expected one of them")
    return turns


def _no_messages(record: dict) -> str:
    """What is wrong with a row without messages."""
    expected = 'expected {"messages": [{"role": ..., "content": ...}, ...]} or {"tokens": ..., ...}'
    for kind, keys in (("an Alpaca", ("instruction", "output")), ("a prompt and completion", ("prompt",))):
        if all(key in record for key in keys):
            return f"{kind} row, which holds no results of programs; {expected}"
    return expected


def _turn(message: dict, shape: Protocol, asked: dict) -> tuple[dict, dict]:
    """A message as ours, and its call of a tool ({} without one). `asked`: the call of the message before."""
    message = {key: value for key, value in message.items() if value is not None}
    named = message.get("role", message.get("from"))
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise ValueError(
            f"roles: {str(named)[:40]!r} is none; expected {', '.join(dict.fromkeys(ROLES.values()))}"
        )
    text = message.get("content", message.get("value"))
    call, text = _call(message, text, named) if role == "assistant" else ({}, text)
    text = _text(text)
    if role == "tool" and asked.get("id") and message.get("tool_call_id") not in (None, "", asked["id"]):
        raise ValueError(f"a result of call {message['tool_call_id']!r} after call {asked['id']!r}")
    if call:
        if not shape.open:
            raise ValueError(f"a call of a tool, but protocol {shape.name} runs no code")
        program = _program(call)
        block = shape.block(program)
        if [part.program for part in split_code(block, shape)][0] != program.strip():
            said = (
                "a program that a code block cannot hold as it is: with a fence or a string that does not end"
            )
            raise ValueError(f"a call of a tool with {said}")
        text = f"{text.rstrip()}\n{block}" if text.strip() else block
    thought = next((t for key in REASONING if (t := _text(message.get(key, ""))).strip()), "")
    if thought and role != "assistant":
        raise ValueError(f"reasoning in a message of the {role}; expected it in the assistant's")
    if thought and ("<think>" in text or "</think>" in text):
        before, _, rest = text.partition("</think>")
        if before.replace("<think>", "").strip() != thought.strip() or "think>" in rest:
            raise ValueError("reasoning beside a text with <think> of its own; expected one of them")
    elif thought:
        text = f"<think>\n{thought.strip()}\n</think>\n\n{text.lstrip()}"
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise ValueError(f"weight {weight!r}; expected 0 or 1")
    return {"role": "context" if role == "assistant" and weight == 0 else role, "content": text}, call


def _call(message: dict, text: object, role: str) -> tuple[dict, object]:
    """The one call of a tool in an assistant's message, {} without one, and the text beside it."""
    if role == "function_call":  # ShareGPT: the message is the call
        calls, text = [_parsed(text)], ""
    else:
        calls = _parsed(message.get("tool_calls") or message.get("function_call") or [])
        calls = calls if isinstance(calls, list) else [calls]
    if len(calls) > 1:
        raise ValueError(f"{len(calls)} calls of tools in one message; expected one, before its result")
    if not calls:
        return {}, text
    if not isinstance(calls[0], dict):
        raise ValueError(f"a call of a tool that is {str(calls[0])[:40]!r}; expected an object")
    return calls[0], "" if text is None else text


def _text(content: object) -> str:
    """The content of a message as one text; parts are joined."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    kinds = [part.get("type", "text") for part in parts if isinstance(part, dict)]
    if strange := [kind for kind in kinds if kind not in ("text", "input_text", "output_text")]:
        raise ValueError(f"a message with a part of type {str(strange[0])[:40]}; expected text")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a message without text content")
    return "".join(texts)


def _program(call: dict) -> str:
    """The program of a call of a Python tool. Raises ValueError for any other call."""
    function = call.get("function") if isinstance(call.get("function"), dict) else call
    name, arguments = function.get("name"), _parsed(function.get("arguments", function.get("parameters")))
    if isinstance(arguments, dict):
        given = {key: value for key, value in arguments.items() if value is not None}
        texts = [given[key] for key in CODE if isinstance(given.get(key), str)]
        if not texts and isinstance(name, str) and PYTHON.search(name):
            texts = [value for value in given.values() if isinstance(value, str)]
        if OTHER.search(str(name)) or not PYTHON.search(str(given.get("language", "python"))):
            texts = []
        arguments = texts[0] if len(texts) == 1 else None
    elif not (isinstance(name, str) and PYTHON.search(name)):
        arguments = None
    if not isinstance(arguments, str) or not arguments.strip():
        raise ValueError(
            f"a call of {str(name)[:40]!r} that is no program; expected one of a Python tool, with code"
        )
    return arguments


def _parsed(value: object) -> object:
    """The value of a JSON text, where it is an object or a list; anything else as it is."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, (dict, list)) else value
