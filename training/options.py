"""The option groups that the commands combine with their own."""

from dataclasses import dataclass

from plumbing.config import option
from tasks import PROTOCOLS


@dataclass(frozen=True)
class ModelOptions:
    """Model and device."""

    model: str = option("tiny", "checkpoint folder, or tiny: built in, 0.9M random weights")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option(
        "auto",
        "of computing: float32, bfloat16 or (not in training) float16; auto: bfloat16 on CUDA, and for a "
        "model stored in it on a CPU with instructions for it; weights that learn are float32",
    )


@dataclass(frozen=True)
class Ranks:
    """Ranks."""

    rank_timeout: float = option(1800.0, "seconds to wait for the other ranks, in rollouts too", above=0)


@dataclass(frozen=True)
class Memory(Ranks):
    """Memory."""

    micro_tokens: int = option(
        2048,
        "tokens per pass, or one sequence; a CPU is slower with more, a GPU faster",
        least=1,
    )
    checkpointing: bool = option(False, "compute activations again in the backward pass: less memory")
    offload: bool = option(False, "float32 weights, optimiser, reference on the host: fits more, slower")


@dataclass(frozen=True)
class Prompting:
    """Protocol."""

    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    prompt_file: str | None = option(None, "text file with {question} in it; replaces the prompt")
    system_file: str | None = option(None, "text file of a system prompt; the question follows alone")


@dataclass(frozen=True)
class Questions:
    """Questions."""

    tasks: str = option("toy", "tasks, suites or files of questions, comma separated")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; docs/data.md")


@dataclass(frozen=True)
class EvaluationQuestions(Questions):
    """Questions for evaluation."""

    symbench: str | None = option(None, "folder with SymBench as published; see docs/data.md")


@dataclass(frozen=True)
class TrainingQuestions(Questions):
    """Questions for training; of a suite, its training tasks."""

    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")


@dataclass(frozen=True)
class HeldOutOptions:
    """Evaluation during training."""

    eval_every: int = option(0, "steps between held-out evaluations; 0: none", least=0)
    eval_tasks: str | None = option(
        None, "tasks, suites or files; without it, what is trained on, and of the suites the test tasks too"
    )
    eval_questions: int = option(128, "questions of seen tasks, and of unseen ones", least=1)
    eval_temperature: float = option(0.0, "of their answers; 0 is greedy", least=0)
    symbench: str | None = option(None, "folder with SymBench as published, for these questions")


@dataclass(frozen=True)
class Sampling:
    """Sampling."""

    temperature: float = option(1.0, "of sampling; 0 is greedy", least=0)
    max_prompt: int | None = option(None, "tokens; without it as many as the longest prompt has", least=1)
    slots: int = option(128, "episodes decoded at once", least=1)


@dataclass(frozen=True)
class SandboxOptions:
    """Sandbox."""

    sandbox: str = option("core", "least isolation accepted: full, core, none")
    sandbox_url: str | None = option(None, "SandboxFusion server that runs the programs instead")
    workers: int | None = option(None, "programs run at once; without it, one per core", least=1)
    memory_mb: int = option(512, "MiB of a program, beyond what is preloaded", least=1)
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    max_sandbox_errors: float = option(
        0.01, "share of programs that the sandbox may fail to run; beyond, stop", least=0, most=1
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
