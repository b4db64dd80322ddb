"""The chat template of a checkpoint folder, rendered by jinja2 as transformers does.

`files` are the contents of the folder's files, by name.
"""

import json
import os
import re
from collections.abc import Sequence

from plumbing.config import UsageError

# The chat template of the embedded model, and of a folder without one. It has no system prompt of its own.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def settings(files: dict[str, bytes], name: str) -> dict:
    """The object in a JSON file, {} without the file. Raises ValueError for a damaged one."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: holds a {type(found).__name__}; expected a JSON object")
    return found


class NotAppendOnly(UsageError, ValueError):
    """The chat template writes an earlier answer otherwise than it was sampled."""


def render(files: dict[str, bytes], messages: Sequence[dict]) -> str:
    """The prompt that the chat template makes of messages, as transformers renders it. Raises ValueError
    where the template fails."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    config = settings(files, "tokenizer_config.json")
    template = (
        files.get("chat_template.jinja", b"").decode("utf-8-sig") or config.get("chat_template") or CHATML
    )
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        for name, token in config.items():
            if name.endswith("_token") and token:
                values[name] = token["content"] if isinstance(token, dict) else token
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}["default"]
        return environment.from_string(template).render(values)
    except Exception as error:  # noqa: BLE001 (a template is a program)
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template fails for {roles} ({error})") from None


def rendered(files: dict[str, bytes], roles: Sequence[str]) -> list[str]:
    """The chat template's own text before, between and after messages of these roles. Raises ValueError where
    the template fails, or changes or drops a message."""
    # A text that the template strips, escapes or writes in another case is not found again.
    texts = [f" \nText {i} <&' \n " for i in range(len(roles))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    parts = re.split(f"({'|'.join(texts)})", render(files, messages))
    if parts[1::2] != texts:
        raise ValueError(f"the chat template changes or drops a message of {', '.join(roles)}")
    return parts[::2]


def check_kept(files: dict[str, bytes], answer: str) -> None:
    """Raise NotAppendOnly, with both renderings, unless a second question's prompt begins with the first
    prompt and its answer."""
    messages = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": answer}]
    sampled = render(files, messages[:1]) + answer
    later = render(files, [*messages, messages[0]])
    if not later.startswith(sampled):
        same = max(0, len(os.path.commonprefix([sampled, later])) - 40)
        raise NotAppendOnly(
            f"the chat template writes an earlier answer otherwise than it was sampled: sampled is "
            f"{sampled[same : same + 160]!r}, the template has {later[same : same + 160]!r}; "
            f"ask one question per conversation"
        )
