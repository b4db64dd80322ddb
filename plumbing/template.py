"""The chat template of a checkpoint folder, rendered by jinja2 as transformers does.

`files` are the contents of the folder's files, by name.
"""

import json
import re
from collections.abc import Sequence

# The chat template of the embedded model, and of a folder without one.
CHATML = (
    "{% set own = {'role': 'system', 'content': 'You are a helpful assistant.'} %}"
    "{% for m in (messages if messages[0].role == 'system' else [own] + messages) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def settings(files: dict[str, bytes], name: str) -> dict:
    """The object in a JSON file, {} without the file. Raises ValueError for a damaged one."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{name}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: holds a {type(found).__name__}; expected a JSON object")
    return found


def rendered(files: dict[str, bytes], roles: Sequence[str]) -> list[str]:
    """The chat template's own text before, between and after messages of these roles, rendered as
    transformers does. Raises ValueError where the template fails, or changes or drops a message."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    # A text that the template strips, escapes or writes in another case is not found again.
    texts = [f" \nText {i} <&' \n " for i in range(len(roles))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
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
        text = environment.from_string(template).render(values)
    except Exception as error:  # noqa: BLE001 (a template is a program)
        raise ValueError(f"the chat template fails for {', '.join(roles)} ({error})") from None
    parts = re.split(f"({'|'.join(texts)})", text)
    if parts[1::2] != texts:
        raise ValueError(f"the chat template changes or drops a message of {', '.join(roles)}")
    return parts[::2]
