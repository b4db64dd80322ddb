"""The demo on a real model: base in text, base with the interpreter, SFT, GRPO, on tasks that no stage saw.

    python demo.py --model models/coder-0.5b            # hours on two CPU cores, minutes on a GPU

Training is on the training tasks of the three suites, evaluation on questions of their unseen tasks, sampled
and greedy, and on new questions of the training tasks. docs/real.md says what came out.
"""

import dataclasses
import json
from pathlib import Path

import torch

import coldstart
import evaluate
import grpo
import sft
from analysis.compare import compare
from analysis.stages import Stage, run_stages, trained
from tasks import get
from training.options import SandboxOptions

TASKS = "symbench,bbh,reasoning_gym"
TOKENS = 512  # of an episode, after its prompt
SETS = {  # split, temperature (R1-Code-Interpreter samples at 0.6), share of --questions
    "unseen": ("test", 0.6, 1.0),
    "unseen_greedy": ("test", 0.0, 1.0),
    "seen": ("train", 0.6, 0.75),
}
EVALUATED = {  # stage -> its sets
    "base_text": ["unseen"],
    "base": ["unseen", "unseen_greedy"],
    "sft": list(SETS),
    "grpo": list(SETS),
}
SHOWN = ("accuracy", "stderr", "answered", "code_ratio", "calls", "calls_failed", "truncated")


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes and times that suit a kind of machine."""

    examples: int  # trajectories for SFT, each seen once
    batch: int  # trajectories of an SFT step
    steps: int  # of GRPO
    prompts: int  # questions of a GRPO step, eight episodes each
    lr: float  # of GRPO
    slots: int  # episodes sampled at once
    micro_tokens: int
    save_every: int  # steps; a checkpoint takes seconds
    minutes: dict[str, float]  # of a step of SFT, a step of GRPO, 680 questions


SIZES = {
    "cpu": Size(1024, 8, 24, 16, 3e-6, 64, 2048, 10, {"sft": 0.6, "grpo": 3.0, "asked": 25}),
    "cuda": Size(6400, 32, 20, 64, 3e-6, 512, 16384, 100, {"sft": 0.005, "grpo": 0.25, "asked": 0.3}),
}


def device() -> str:
    """Where the demo runs, a key of SIZES."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def common(cfg) -> dict:
    """Options of all scripts. cfg: demo.Config, whose --preload is for the small demo's programs only."""
    names = {f.name for f in dataclasses.fields(SandboxOptions)} - {"preload"} | {"seed"}
    return {name: getattr(cfg, name) for name in names}


def training(cfg, folder: Path) -> dict[str, object]:
    """The options of coldstart.py, sft.py and grpo.py."""
    size = SIZES[device()]
    examples = cfg.sft_examples or size.examples
    data = folder / "sft.jsonl"
    shared = common(cfg) | {
        "micro_tokens": size.micro_tokens,
        "save_every": size.save_every,
        "resume": True,
    }
    return {
        "data": coldstart.Config(
            tasks=TASKS,
            per_task=max(1, min(70, examples // 70)),  # 94 tasks have programs; some are too long
            evaluation=100,  # no stage asks more of a task
            out=str(data),
            **common(cfg),
        ),
        "sft": sft.Config(
            model=cfg.model,
            data=str(data),
            steps=-(-examples // size.batch),
            batch=size.batch,
            lr=2e-5,
            max_length=768,  # with the prompt; longer answers would teach it to run out of tokens
            out=str(folder / "sft"),
            **shared,
        ),
        "grpo": grpo.Config(
            model=str(folder / "sft" / "final"),
            tasks=TASKS,
            drop_equal_groups=True,  # two questions of three are always or never solved: not computed
            steps=cfg.grpo_steps or size.steps,
            prompts=size.prompts,
            lr=size.lr,
            max_prompt=768,
            max_tokens=TOKENS,
            slots=size.slots,
            out=str(folder / "grpo"),
            **shared,
        ),
    }


def asked(cfg, folder: Path, name: str, kind: str) -> evaluate.Config:
    """The options of evaluate.py for one set of questions."""
    split, temperature, share = SETS[kind]
    return evaluate.Config(
        model=cfg.model if name.startswith("base") else str(folder / name / "final"),
        tasks=TASKS,
        split=split,
        protocol="text" if name == "base_text" else "r1ci",
        temperature=temperature,
        questions=round(cfg.questions * share),
        max_prompt=1024,
        max_tokens=TOKENS,
        slots=SIZES[device()].slots,
        out=str(folder / f"{name}_{kind}.json"),
        **common(cfg),
    )


def stages(cfg, folder: Path) -> list[Stage]:
    """All stages, in order."""
    options = training(cfg, folder)
    about = "trajectories of the reference programs"
    made = Path(options["data"].out)
    minutes = 0.3 + options["data"].per_task / 23
    found = [
        Stage("data", about, minutes, "coldstart", coldstart.make, options["data"], made, graceful=False)
    ]
    scripts = {"sft": (sft, "trajectories"), "grpo": (grpo, "questions, 8 episodes of each")}
    times = SIZES[device()].minutes
    for name, kinds in EVALUATED.items():
        if name in scripts:
            script, what = scripts[name]
            how = options[name]
            about = f"{how.steps} steps of {how.batch if script is sft else how.prompts} {what}"
            made = folder / name / "final"
            found.append(Stage(name, about, times[name] * how.steps, name, script.train, how, made, trained))
        for kind in kinds:
            how = asked(cfg, folder, name, kind)
            about = (
                f"{how.questions} questions of {'unseen' if how.split == 'test' else 'the training'} tasks"
            )
            minutes, made = times["asked"] * how.questions / 680, Path(how.out)
            found.append(
                Stage(
                    f"{name}_{kind}",
                    about,
                    minutes,
                    "evaluate",
                    evaluate.write,
                    how,
                    made,
                    right,
                    graceful=False,
                )
            )
    return found


def right(path: Path) -> str:
    """What an evaluation found, in a line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in row(path).items())


def row(path: Path) -> dict[str, float]:
    """The figures of the summary, from a file of evaluate.py."""
    overall = json.loads(path.read_text())["overall"]["micro"]
    return {name: overall[name] for name in SHOWN}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The summary for people."""
    lines = [f"{'':22}" + "".join(f"{name.replace('_', ' '):>14}" for name in SHOWN)]
    lines += [
        f"{stage:22}" + "".join(f"{found[name]:14.3f}" for name in SHOWN) for stage, found in rows.items()
    ]
    return "\n".join(lines)


def changed(folder: Path) -> list[tuple[str, dict[str, dict]]]:
    """Up to three unseen questions that GRPO turned from wrong to right, one of a task; with their records
    from the files of SFT and of GRPO."""
    files = {name: json.loads((folder / f"{name}_unseen.json").read_text()) for name in ("sft", "grpo")}
    found: dict[str, dict[str, dict]] = {}
    for before, after in zip(*(file["questions"] for file in files.values()), strict=True):
        if after["correct"][0] and not before["correct"][0]:
            found.setdefault(before["task"], {"after SFT": before, "after GRPO": after})
    return list(found.items())[:3]


def run(cfg, folder: Path) -> dict:
    """All stages; the summary, which is printed and written too. cfg: demo.Config."""
    seconds = run_stages(stages(cfg, folder), folder)
    rows = {
        f"{stage}_{kind}": row(folder / f"{stage}_{kind}.json")
        for stage, kinds in EVALUATED.items()
        for kind in kinds
    }
    for task, told in changed(folder):
        question = get(task).problem(told["after SFT"]["index"]).question
        print(f"\n{task}: {question}")
        for when, line in told.items():
            verdict = "right" if line["correct"][0] else "wrong"
            print(f"\n-- {when}, {verdict} --\n{line['texts'][0].strip()}")
    print("\n" + table(rows))
    print(compare([str(folder / f"{name}_unseen.json") for name in ("base", "sft", "grpo")]))
    return {"model": cfg.model, "device": device(), "seconds": seconds, "stages": rows}
