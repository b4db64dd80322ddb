"""How often a model is right, and how it used the interpreter.

    python evaluate.py --model runs/demo/grpo/final --tasks toy --split test --questions 200
    python evaluate.py --model runs/demo/grpo/final --tasks toy,facts --samples 8 --out eval.json

Questions have indices below 10,000, which no training stage draws from. With --samples k each question is
answered k times: avg@k is the mean over all answers, pass@k the chance that one of k is right.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import checkpoint
import config
from config import UsageError, option
from distributed import World
from model import Qwen
from rollout import Episode, Limits, Request, open_sandbox, rollout, statistics
from sample import Sampler
from sandbox import Sandbox
from tasks import PROTOCOLS, SFT_START, Problem, get, get_protocol, select
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder")
    tasks: str = option("toy", "task or suite names, comma separated")
    split: str | None = option(None, "of a suite: train, test, or both without it")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")
    questions: int = option(200, "in all, spread evenly over the tasks", least=1)
    samples: int = option(1, "answers per question (ReTool: 32)", least=1)
    temperature: float = option(1.0, "0 is greedy (R1-Code-Interpreter: 0.6, ReTool: 1.0)", least=0)
    top_p: float = option(1.0, "nucleus (ReTool: 0.7)", above=0, most=1)
    max_prompt: int = option(512, "tokens of the longest prompt", least=1)
    max_tokens: int = option(512, "tokens of an episode after its prompt", least=1)
    max_calls: int = option(8, "programs per episode", least=0)
    timeout: float = option(5.0, "seconds per program", above=0)
    slots: int = option(128, "episodes decoded at once", least=1)
    seed: int = option(0, "sampling", least=0)
    out: str | None = option(None, "JSON file for the table")
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k answers is right, from n answers of which c are: unbiased for k <= n
    (2107.03374, eq. 1). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def questions(tasks: Sequence[str], count: int) -> list[Problem]:
    """`count` evaluation questions, the tasks in turn."""
    if count > SFT_START * len(tasks):
        raise UsageError(
            f"--questions {count}: {len(tasks)} tasks have {SFT_START} evaluation questions each"
        )
    return [get(tasks[i % len(tasks)]).problem(i // len(tasks)) for i in range(count)]


def answer(
    model: Qwen, tokenizer: Tokenizer, asked: Sequence[Problem], cfg: Config, sandbox: Sandbox | None
) -> list[Episode]:
    """`samples` graded episodes per problem, in order; a progress bar on stderr."""
    wanted = [
        Request(problem, place, key=(cfg.seed, 0, place, sample))
        for place, problem in enumerate(asked)
        for sample in range(cfg.samples)
    ]
    slots = min(cfg.slots, len(wanted))
    length = cfg.max_prompt + cfg.max_tokens
    sampler = Sampler(model, slots, length, temperature=cfg.temperature, top_p=cfg.top_p)
    limits = Limits(cfg.max_calls, cfg.max_tokens, timeout=cfg.timeout)
    pause = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(wanted), desc="evaluate", leave=False, mininterval=pause) as bar:
        return rollout(
            sampler,
            tokenizer,
            wanted,
            get_protocol(cfg.protocol),
            sandbox,
            limits,
            on_finish=lambda _: bar.update(),
            system=config.read_text(cfg.system_file, "--system-file"),
        )


def summary(episodes: Sequence[Episode], samples: int = 1) -> dict[str, float]:
    """Means over episodes, the standard error of the accuracy over questions, and pass@samples."""
    sums = statistics(episodes)
    count = max(1.0, sums.pop("episodes"))
    row = {"episodes": int(count)} | {name: value / count for name, value in sums.items()}
    right = [sum(e.correct for e in episodes[i : i + samples]) for i in range(0, len(episodes), samples)]
    mean = row["accuracy"]
    spread = sum((r / samples - mean) ** 2 for r in right) / max(1, len(right) - 1)
    row["stderr"] = math.sqrt(spread / len(right))
    row["pass_at_k"] = sum(pass_at_k(samples, r, samples) for r in right) / len(right)
    return row


def table(rows: dict[str, dict[str, float]], samples: int) -> str:
    """A row per name: accuracy and how the interpreter was used."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  avg@{samples:<3} +-    pass@{samples:<3} code  calls  failed  tokens"]
    for name, r in rows.items():
        lines.append(
            f"{name:{width}}  {r['accuracy']:.3f} {r['stderr']:.3f}   {r['pass_at_k']:.3f}   "
            f"{r['code_ratio']:.2f}   {r['calls']:.2f}    {r['calls_failed']:.2f}  "
            f"{r['response_tokens']:6.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    cfg = config.parse(Config, __doc__)
    config.new_file(cfg.out, "--out")
    asked = questions(list(dict.fromkeys(select(cfg.tasks, cfg.split))), cfg.questions)
    get_protocol(cfg.protocol)
    model, tokenizer = checkpoint.load_model(cfg.model, World(cfg.device), cfg.dtype, cfg.seed)
    with open_sandbox(cfg.sandbox, cfg.timeout, cfg.preload) as sandbox:
        episodes, level = answer(model, tokenizer, asked, cfg, sandbox), sandbox.level
    by_task: dict[str, list[Episode]] = {}
    for e in episodes:
        by_task.setdefault(e.problem.task, []).append(e)
    rows = {name: summary(found, cfg.samples) for name, found in sorted(by_task.items())}
    rows["all"] = summary(episodes, cfg.samples)
    print(table(rows, cfg.samples))
    if cfg.out:
        record = {"config": config.to_json(cfg), "sandbox": level, "rows": rows}
        Path(cfg.out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    config.run(main)
