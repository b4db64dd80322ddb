"""What grpo.py and ppo.py share: their option groups, their environment."""

from collections.abc import Callable
from dataclasses import dataclass

from episode import Episode, Finish
from plumbing import config
from plumbing.config import UsageError, nearest, option
from rollout import REWARDS, Environment, Limits
from sandbox import Sandbox
from tasks import get_protocol, read_prompt
from tokenizer import Source, Tokenizer
from training.options import (
    HeldOutOptions,
    Memory,
    ModelOptions,
    Prompting,
    RunOptions,
    Sampling,
    SandboxOptions,
    TrainingQuestions,
)

ORDERS = ("curriculum", "equal", "difficulty", "none")  # training.course.Course
WEIGHTS = ("token_mean", "seq_mean", "constant")  # loss.token_weights


@dataclass(frozen=True)
class RolloutBatch(Sampling, Limits):
    """Rollout batch."""

    steps: int = option(100, "rollout batches", least=1)
    prompts: int = option(16, "questions per step (R1-Code-Interpreter: 128)", least=1)
    group: int = option(8, "episodes per question (R1-Code-Interpreter: 5)", least=1)
    reward: str = option("outcome", "of an episode: " + ", ".join(REWARDS))
    overlong_buffer: int = option(
        0, "reward falls to -1 over the last N of --max-tokens (DAPO: 4096 of 20480); 0: no", least=0
    )
    filter_overlong: bool = option(False, "do not train episodes that ran out of tokens")
    max_prompt: int = option(512, "tokens of the longest prompt", least=1)


@dataclass(frozen=True)
class PolicyObjective:
    """Policy objective."""

    lr: float = option(1e-6, "learning rate of the policy (both papers)", above=0)
    warmup: int = option(0, "steps over which --lr rises linearly; not given in the papers", least=0)
    grad_clip: float = option(1.0, "largest norm of the gradient, of each model", above=0)
    weights: str = option("token_mean", "token_mean (DAPO), seq_mean (GRPO) or constant (Dr. GRPO)")
    clip_low: float = option(0.2, "lower clip of the ratio; not given in the papers", least=0)
    clip_high: float = option(0.28, "upper clip of the ratio, a little wider (DAPO)", least=0)
    dual_clip: float | None = option(
        None, "limit the loss of a token of negative advantage to X times its size", above=1
    )
    kl_coef: float = option(
        0.0,
        "weight of KL to the starting model (R1-Code-Interpreter: 0.001, ReTool: 0); PPO and REINFORCE++ "
        "have it in the reward",
        least=0,
    )
    entropy_coef: float = option(0.0, "weight of an entropy bonus; neither paper has one", least=0)
    importance_cap: float = option(0.0, "weigh by trainer's / sampler's probability, up to X; 0: no", least=0)


@dataclass(frozen=True)
class CurriculumOptions:
    """Curriculum."""

    curriculum: str | None = option(None, "file of training.curriculum, whose questions come in stages")
    stage_steps: int = option(150, "steps per stage (R1-Code-Interpreter: 150)", least=1)
    order: str = option("curriculum", "of questions: " + ", ".join(ORDERS))


@dataclass(frozen=True)
class ReinforcementOptions(
    PolicyObjective,
    RolloutBatch,
    TrainingQuestions,
    CurriculumOptions,
    HeldOutOptions,
    Prompting,
    ModelOptions,
    SandboxOptions,
    RunOptions,
    Memory,
):
    """What grpo.py and ppo.py share."""


def overlong_penalty(episode: Episode, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment, to be added to a reward (2503.14476, eq. 13).

    0 up to max_tokens - buffer tokens after the prompt, then falling linearly to -1 at max_tokens. A
    truncated episode gets -1, also where it ended early because an interpreter result did not fit.
    """
    if episode.finish == Finish.LENGTH:
        return -1.0
    used = sum(s != Source.PROMPT for s in episode.source)
    return min(0.0, max(-1.0, (max_tokens - buffer - used) / buffer))


def get_reward(name: str, max_tokens: int, overlong_buffer: int = 0) -> Callable[[Episode], float]:
    """The reward of this name; with `overlong_buffer` tokens, plus `overlong_penalty`. Raises UsageError."""
    if name not in REWARDS:
        known = f"{', '.join(REWARDS)}; docs/extending.md adds one"
        raise UsageError(f"--reward {name}{nearest(name, REWARDS)}; known are {known}")
    if overlong_buffer > max_tokens:
        raise UsageError(f"--overlong-buffer {overlong_buffer}; expected at most --max-tokens {max_tokens}")
    reward = REWARDS[name]
    if not overlong_buffer:
        return reward
    return lambda episode: reward(episode) + overlong_penalty(episode, max_tokens, overlong_buffer)


def check_objective(cfg) -> None:
    """Refuse options of a training script that cannot work. Raises UsageError."""
    get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    config.one_of("--weights", cfg.weights, WEIGHTS)
    if cfg.temperature <= 0:
        raise UsageError(
            f"--temperature {cfg.temperature}: training samples from the model; expected above 0"
        )
    get_protocol(cfg.protocol)
    config.one_of("--order", cfg.order, ORDERS)
    if cfg.curriculum is None and cfg.order != "curriculum":
        raise UsageError(f"--order {cfg.order} without --curriculum; expected a file to order")


def check_contradictions(cfg) -> None:
    """Refuse options of grpo.py that contradict each other. Raises UsageError."""
    if cfg.group == 1 and cfg.advantage != "reinforce++":
        raise UsageError(
            f"--group 1 with --advantage {cfg.advantage}: an episode alone has advantage 0, so that nothing "
            "is learnt; expected --group 2 or more, or --advantage reinforce++"
        )
    if cfg.kind == "gspo" and cfg.weights != "seq_mean":
        raise UsageError(
            f"--weights {cfg.weights} with --kind gspo, whose ratio is a sequence's; expected --weights "
            "seq_mean --clip-low 3e-4 --clip-high 4e-4"
        )
    if cfg.kind == "cispo" and cfg.dual_clip is not None:
        raise UsageError(f"--dual-clip {cfg.dual_clip} with --kind cispo, which has no such clip")
    if cfg.advantage == "reinforce++" and cfg.drop_equal_groups:
        raise UsageError("--drop-equal-groups with --advantage reinforce++, which has no groups")
    if cfg.advantage == "reinforce++" and cfg.train_on_tool_output:
        raise UsageError(
            "--train-on-tool-output with --advantage reinforce++, whose returns are of policy tokens"
        )


def make_environment(
    prompting: Prompting,
    limits: Limits,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    **options,
) -> Environment:
    """The environment that a command's options describe; `options` are further fields of Environment."""
    protocol = get_protocol(prompting.protocol)
    return Environment(tokenizer, protocol, sandbox, limits, **read_prompt(prompting), **options)
