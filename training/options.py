"""The option groups that the commands combine with their own, and what is made of them."""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from plumbing import config
from plumbing.config import UsageError, option
from rollout import REWARDS, Environment, Limits, get_reward
from sandbox import RemoteSandbox, Sandbox, SandboxError
from tasks import PROTOCOLS, get_protocol
from tokenizer import Tokenizer
from training.course import ORDERS

WEIGHTS = ("token_mean", "seq_mean", "constant")  # loss.token_weights


@dataclass(frozen=True)
class ModelOptions:
    """Model and device."""

    model: str = option("tiny", "checkpoint folder, or tiny: the embedded shape with random weights")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option(
        "auto",
        "what is computed in: float32, bfloat16 or (not in training) float16; weights that learn are float32 "
        "in any case; auto: float32 on CPU, bfloat16 on CUDA",
    )


@dataclass(frozen=True)
class Memory:
    """Memory and ranks."""

    micro_tokens: int = option(
        2048,
        "tokens per forward and backward pass, or one sequence; a CPU is slower with more, a GPU faster",
        least=1,
    )
    checkpointing: bool = option(
        False, "compute each block again in the backward pass instead of keeping its activations: less memory"
    )
    offload: bool = option(
        False, "keep masters, optimiser and reference on the host: less GPU memory, a slower step"
    )
    rank_timeout: float = option(
        1800.0, "seconds that a rank waits for the others; more than rollouts differ by", above=0
    )


@dataclass(frozen=True)
class Prompting:
    """Protocol."""

    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")


@dataclass(frozen=True)
class Questions:
    """Questions."""

    tasks: str = option("toy", "task or suite names, or files of questions, comma separated")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")


@dataclass(frozen=True)
class TrainingQuestions(Questions):
    """Questions for training: of a suite, its training tasks; a name given twice is drawn twice as often."""

    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")


@dataclass(frozen=True)
class Sampling:
    """Sampling."""

    temperature: float = option(1.0, "of sampling; 0 is greedy", least=0)
    max_prompt: int | None = option(None, "tokens; without it as many as the longest prompt has", least=1)
    slots: int = option(128, "episodes decoded at once", least=1)


@dataclass(frozen=True)
class SandboxOptions:
    """Sandbox."""

    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    sandbox_url: str | None = option(None, "SandboxFusion server that runs the programs instead")
    workers: int | None = option(None, "programs run at once; without it, one per core", least=1)
    memory_mb: int = option(512, "MiB that a program may take beyond what is preloaded", least=1)
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    max_sandbox_errors: float = option(
        0.01, "share of recent programs that the sandbox may fail to run; beyond, stop", least=0, most=1
    )


@dataclass(frozen=True)
class RunOptions:
    """Run folder."""

    out: str = option("runs/run", "run folder")
    seed: int = option(0, "questions, data order and sampling; weights of tiny", least=0)
    save_every: int = option(20, "steps between checkpoints", least=1)
    keep: int = option(2, "newest checkpoints that stay", least=1)
    log_every: int = option(10, "steps between whole episodes in episodes.jsonl", least=1)
    resume: bool = option(False, "go on from the run folder's last checkpoint")


@dataclass(frozen=True)
class RolloutBatch(Sampling, Limits):
    """Rollout batch: the questions and episodes of a step."""

    steps: int = option(100, "rollout batches", least=1)
    prompts: int = option(16, "questions per step (R1-Code-Interpreter: 128)", least=1)
    group: int = option(8, "episodes per question (R1-Code-Interpreter: 5)", least=1)
    reward: str = option("outcome", "what an episode is worth: " + ", ".join(REWARDS))
    overlong_buffer: int = option(
        0, "reward falls to -1 over the last so many of --max-tokens (DAPO: 4096 of 20480); 0: no", least=0
    )
    filter_overlong: bool = option(
        False, "episodes that ran out of tokens teach nothing, but stay in their group"
    )
    max_prompt: int = option(512, "tokens of the longest prompt", least=1)


@dataclass(frozen=True)
class PolicyObjective:
    """Policy objective."""

    lr: float = option(1e-6, "learning rate of the policy (both papers)", above=0)
    grad_clip: float = option(1.0, "largest norm of the gradient, of each model", above=0)
    weights: str = option("token_mean", "token_mean (DAPO), seq_mean (GRPO) or constant (Dr. GRPO)")
    clip_low: float = option(0.2, "lower clip of the ratio; the papers do not give theirs", least=0)
    clip_high: float = option(0.28, "upper clip of the ratio, a little wider (DAPO)", least=0)
    dual_clip: float | None = option(
        None, "limits the loss of a token of negative advantage to this times its size", above=1
    )
    kl_coef: float = option(
        0.0,
        "weight of KL to the starting model (R1-Code-Interpreter: 0.001, ReTool: 0); in the loss of GRPO, "
        "in the reward of PPO and REINFORCE++",
        least=0,
    )
    entropy_coef: float = option(0.0, "weight of an entropy bonus; neither paper has one", least=0)
    importance_cap: float = option(
        0.0, "weigh tokens by trainer's over sampler's probability, up to this; 0: log the gap only", least=0
    )


@dataclass(frozen=True)
class CurriculumOptions:
    """Curriculum."""

    curriculum: str | None = option(
        None, "questions of this file of training.curriculum instead of new ones of --tasks, in stages"
    )
    stage_steps: int = option(150, "with --curriculum: steps per stage (R1-Code-Interpreter: 150)", least=1)
    order: str = option("curriculum", "with --curriculum, to compare: " + ", ".join(ORDERS))


@dataclass(frozen=True)
class ReinforcementOptions(
    PolicyObjective,
    RolloutBatch,
    TrainingQuestions,
    CurriculumOptions,
    Prompting,
    ModelOptions,
    SandboxOptions,
    RunOptions,
    Memory,
):
    """What grpo.py and ppo.py share."""


PAPERS = {  # what both papers publish of their reinforcement learning
    "r1ci": {
        "protocol": "r1ci",
        "reward": "r1ci",
        "prompts": 128,
        "group": 5,
        "lr": 1e-6,
        "kl_coef": 0.001,
        "temperature": 1.0,
        "max_prompt": 2048,
        "max_tokens": 8192,
        "max_calls": 8,
        "timeout": 60.0,
    },
    "retool": {
        "protocol": "retool",
        "reward": "retool",
        "lr": 1e-6,
        "kl_coef": 0.0,
        "max_prompt": 2048,
        "max_tokens": 16384,
    },
}


# -- what is made of them --------------------------------------------------------------------------


def check_objective(cfg) -> None:
    """Refuse options of a training script that cannot work. Raises UsageError."""
    get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    config.one_of("--weights", cfg.weights, WEIGHTS)
    if cfg.temperature <= 0:
        raise UsageError(
            f"--temperature {cfg.temperature}: training samples from the model; expected above 0"
        )
    get_protocol(cfg.protocol)


def make_environment(
    prompting: Prompting,
    limits: Limits,
    tokenizer: Tokenizer,
    sandbox: Sandbox | RemoteSandbox | None,
    **options,
) -> Environment:
    """The environment that a command's options describe; `options` are further fields of Environment."""
    system = config.read_text(prompting.system_file, "--system-file")
    protocol = get_protocol(prompting.protocol)
    return Environment(tokenizer, protocol, sandbox, limits, system=system, **options)


@contextlib.contextmanager
def open_sandbox(
    options: SandboxOptions, timeout: float = 5.0, quiet: bool = False
) -> Iterator[Sandbox | RemoteSandbox]:
    """The sandbox of --sandbox with the modules of --preload that are installed, or the server of
    --sandbox-url; `timeout` (seconds) is for programs that name none. One line on stderr says its level and
    layers, unless `quiet` (the other ranks).

    Raises UsageError where the level is unknown or cannot be reached on this machine; and at the next program
    once more than max_sandbox_errors of the recent ones could not be run.
    """
    level, url, share = options.sandbox, options.sandbox_url, options.max_sandbox_errors
    if url and level == "full":
        raise UsageError("--sandbox full: cannot be checked on the server of --sandbox-url; give one of them")
    installed = []
    for name in filter(None, map(str.strip, options.preload.split(","))):
        with contextlib.suppress(ImportError, ValueError):  # the folder of "folder.module" is not installed
            installed += [name] if importlib.util.find_spec(name) else []
    try:
        if url:
            sandbox = RemoteSandbox(url, timeout=timeout, max_failed_share=share, quiet=quiet)
        else:
            sandbox = Sandbox(
                require=level,
                timeout=timeout,
                workers=options.workers,
                memory_mb=options.memory_mb,
                preload=tuple(installed),
                max_failed_share=share,
                quiet=quiet,
            )
    except (ValueError, SandboxError) as error:
        raise UsageError(f"--sandbox {level}: {' '.join(str(error).split())}") from None
    try:
        with sandbox:
            yield sandbox
    except SandboxError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the sandbox does not work any more: {reason}; see docs/sandbox.md") from None
