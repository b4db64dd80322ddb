"""Which words and which marks a real model understands: the same questions, asked in several ways.

    python bench/wording.py --model DIR --protocol r1ci --out wording.json

A way is a prompt and a layout of results. Questions are those of the unseen tasks, in evaluate.py's order.
docs/real.md holds the table.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from analysis.real import SHOWN, TASKS
from plumbing import config
from plumbing.config import option
from plumbing.ranks import World
from tasks import get_protocol, select
from tasks.protocols import Protocol
from training.evaluation import Answering, answer, questions, summary
from training.interpreter import open_sandbox
from training.limits import PromptLimit
from training.loading import load_model
from training.options import ModelOptions, SandboxOptions
from training.reinforcement import make_environment

CODE = "Write a Python program in a ```python block and stop after it: it is run for you, and its output "
LINE = "The last line of your reply is the final answer in triple angle brackets, such as <<<42>>>."
PROMPTS = {
    "r1ci": {
        "now": None,
        "example": "Solve the question. Reason first. "
        + CODE
        + "or error comes back. Repeat if needed. Print what you "
        "need. " + LINE + "\n\n{question}",
        "behind": "{question}\n\n"
        + CODE
        + "or error comes back. You may do this several times. Print what you need. "
        "When you know the answer, give it in triple angle brackets and stop: if it is 42, write <<<42>>>.",
        "steps": "{question}\n\nSolve this in two steps. 1. Think, then write one complete Python program "
        "in a ```python block that prints the answer, and stop: the program is run for you. If it fails, "
        "write a better one. 2. Read the output and put the final answer in triple angle brackets, such as "
        "<<<42>>>.",
    },
    "text": {
        "now": None,
        "example": "Solve the question by reasoning in words alone; do not write code. "
        + LINE
        + "\n\n{question}",
        "behind": "{question}\n\nReason in words, do not write code. When you know the answer, give it in "
        "triple angle brackets and stop: if it is 42, write <<<42>>>.",
    },
    "tir": {
        "now": None,
        "user": "{question}\n\nPlease integrate natural language reasoning with programs to solve the "
        "problem above, and put your final answer within \\boxed{}.",
    },
}
LAYOUTS = {
    "r1ci": {
        "plain": {},
        "blank": {"after": "\n"},
        "fenced": {"before": "\nCode Execution Results:\n```\n", "after": "```\n"},
        "output": {"before": "\nCode Execution Results:\n```output\n", "after": "```\n"},
    },
    "text": {"plain": {}},
    "tir": {"plain": {}, "blank": {"after": "```\n\n"}},
}


@dataclass(frozen=True)
class Config(Answering, ModelOptions, SandboxOptions):
    """Wording."""

    questions: int = option(100, "questions of the unseen tasks", least=1)
    ways: str | None = option(None, "only these, such as behind/fenced, comma separated")
    out: str | None = option(None, "JSON file for the rows and some answers")


def ways(name: str) -> dict[str, Protocol]:
    """Name -> the protocol with another prompt and another layout of results."""
    protocol = get_protocol(name)
    return {
        f"{words}/{layout}": replace(protocol, **marks, **({"prompt": text} if text else {}))
        for words, text in PROMPTS[name].items()
        for layout, marks in LAYOUTS[name].items()
    }


def main() -> None:
    cfg = config.parse(Config, __doc__)
    world = World(cfg.device)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype)
    found = {}
    with open_sandbox(cfg, cfg.timeout) as sandbox:
        plain = make_environment(cfg, cfg, tokenizer, sandbox)
        asked = questions(select(TASKS, "test"), cfg.questions, PromptLimit(plain, cfg.max_prompt))
        for name, protocol in ways(cfg.protocol).items():
            if cfg.ways and name not in cfg.ways.split(","):
                continue
            environment = replace(plain, protocol=protocol)
            episodes = answer(model, environment, asked, cfg, world)
            row = summary(episodes)
            texts = [environment.tokenizer.decode(e.tokens) for e in episodes[:8]]
            found[name] = {"row": row, "protocol": vars(protocol), "episodes": texts}
            told = "  ".join(f"{key} {row[key]:.3f}" for key in (*SHOWN, "response_tokens"))
            print(f"{name:16} {told}", flush=True)
            if cfg.out:
                config.write_text(cfg.out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    config.run(main)
