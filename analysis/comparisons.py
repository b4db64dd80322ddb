"""The comparisons of both papers in miniature, as data: what analysis/reproduce.py trains and asks.

    rows = all_rows(Sizes())
    rows["masking"].variants["RL, masked"].stage          what trains it, from what, with which options

A Row is one comparison. Its variants are models, each made by a chain of Stages. Rows share stages: equal
stages have the same digest, and are trained once. The claims are what the papers say of the variants.
findings.py compares them with the measured numbers by rule.

Sources: R1-Code-Interpreter (R1-CI, 2505.21668) and ReTool (2504.11536). Accuracies are percentages of the
37 test tasks (R1-CI) and of AIME 2024 (ReTool). "n.s.": no number is stated.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from tasks import names

FORMATS = ("r1ci", "retool", "tir")  # the answer formats that are compared


@dataclass(frozen=True)
class Sizes:
    """How much is trained and asked. One seed of all rows takes well under two hours on two idle cores."""

    examples: int = 16_000  # trajectories of a base model's mixture
    base_steps: int = 900
    steps: int = 40  # of reinforcement learning; rows of many variants take half as many
    prompts: int = 24  # questions per step, 8 episodes each
    tokens: int = 192  # of an episode after its prompt
    trajectories: int = 24  # for SFT, beside the facts
    questions: int = 321  # at most so many of each evaluation set
    measured: int = 200  # questions whose potential is measured for a curriculum
    samples: int = 12  # answers to each of them


@dataclass(frozen=True)
class Stage:
    """What makes a model (base, sft, grpo, ppo) or a curriculum's file (curriculum)."""

    kind: str
    options: dict
    start: "Stage | None" = None  # the model it begins with
    course: "Stage | None" = None  # the curriculum that it follows

    @property
    def digest(self) -> str:
        """A fingerprint of the options of this stage and of those before it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Variant:
    """A model and the protocol in which it is asked. `paper`: the papers' number, where there is one. An
    episode has `longer` times the tokens of other rows."""

    stage: Stage
    paper: str = ""
    protocol: str = "r1ci"
    longer: int = 1


@dataclass(frozen=True)
class Claim:
    """`says`: `more` has a higher value of the quantity `on` than `less` has of `than` (of `on` where it is
    empty). With `near`, that the two differ by at most so much. `guess`: why ours may differ."""

    says: str
    more: str
    less: str
    guess: str
    on: str = "unseen.sampled"
    than: str = ""
    near: float | None = None
    paper: str = "n.s."


ACCURACY = ("seen.sampled", "unseen.sampled", "seen.greedy", "unseen.greedy")


@dataclass(frozen=True)
class Row:
    """One comparison. `columns` are the quantities of the table, `curves` those drawn along training."""

    title: str
    about: str
    variants: dict[str, Variant]
    claims: tuple[Claim, ...] = ()
    columns: tuple[str, ...] = (*ACCURACY, "behaviour.code_ratio")
    curves: tuple[str, ...] = ()
    left_out: str = ""  # what the papers compare and this row does not
    ours: bool = False  # the papers have no such comparison


# -- stages that rows share ------------------------------------------------------------------------


def base(s: Sizes, ways: tuple[str, ...] = ("r1ci",)) -> Stage:
    """The demo's base model. With several ways of answering, each gets an equal share of half as much data
    again: the demo's mixture has r1ci alone, which would decide a comparison between ways."""
    more = 3 if len(ways) > 1 else 2
    size = {"examples": more * s.examples // 2, "steps": max(1, more * s.base_steps // 2)}
    return Stage("base", {"ways": list(ways)} | size)


def sft(s: Sizes, start: Stage, **options) -> Stage:
    """SFT as in the demo: few right trajectories, a fifth with a repair, and facts."""
    own = {"count": s.trajectories, "repair": 0.2, "wrong": 0.0, "protocol": "r1ci"}
    return Stage("sft", own | options, start)


def grpo(s: Sizes, start: Stage, share: float = 1.0, **options) -> Stage:
    """GRPO as in the demo, for a share of the steps."""
    sizes = {"steps": max(1, round(share * s.steps)), "prompts": s.prompts, "max_tokens": s.tokens}
    return Stage("grpo", sizes | options, start)


def ppo(s: Sizes, start: Stage, share: float = 1.0, **options) -> Stage:
    """PPO on the same questions. The critic of a small model learns faster than the papers' would."""
    return dataclasses.replace(grpo(s, start, share, critic_lr=5e-4, critic_warmup=3, **options), kind="ppo")


def mixed_base(s: Sizes) -> Stage:
    """A base model that knows every way of answering equally well."""
    return base(s, (*FORMATS, "code"))


# -- the rows --------------------------------------------------------------------------------------


def modes(s: Sizes) -> Row:
    """Text only, all code and free choice, before and after RL."""
    start = mixed_base(s)
    choice = grpo(s, start)
    return Row(
        "Text only, all code, free choice",
        "All variants start from a base model that has seen each way of answering equally often.",
        {
            "text only": Variant(start, "58.6 (GPT-4o)", "text"),
            "all code": Variant(start, "n.s.", "code"),
            "free choice": Variant(start, "70.9 (GPT-4o)"),
            "RL, text only": Variant(grpo(s, start, protocol="text"), "40.0 (ReTool)", "text"),
            "RL, free choice": Variant(choice, "67.0 (ReTool)"),
        },
        (
            Claim("code beats text alone without training", "free choice", "text only",
                  "a small model may not know what to do with code", paper="+12.3"),
            Claim("code beats text alone after RL", "RL, free choice", "RL, text only",
                  "RL may not have had enough steps", paper="+27.0"),
            Claim("free choice beats code at any price on facts", "free choice", "all code",
                  "a program can print a fact too", on="facts.sampled"),
        ),
        columns=("seen.sampled", "unseen.sampled", "facts.sampled", "behaviour.code_ratio"),
    )  # fmt: skip


def stages(s: Sizes) -> Row:
    """SFT alone, RL alone, both: the demo's table."""
    start = base(s)
    tuned = sft(s, start)
    return Row(
        "SFT alone, RL alone, both",
        "The demo's table. Facts are questions that need no code.",
        {
            "base, text only": Variant(start, "", "text"),
            "base": Variant(start, "44.1 (R1-CI 14B); 26.7 (ReTool)"),
            "SFT": Variant(tuned, "40.9 (ReTool)"),
            "RL alone": Variant(grpo(s, start), "barely improves (R1-CI)"),
            "SFT + RL": Variant(grpo(s, tuned), "64.1 (R1-CI 14B, v1); 67.0 (ReTool)"),
        },
        (
            Claim("SFT improves the base", "SFT", "base",
                  "few trajectories may fix the form and nothing else", paper="+14.2 (ReTool)"),
            Claim("RL improves SFT", "SFT + RL", "SFT",
                  "SFT may leave nothing to learn", paper="+3.4 (R1-CI), +26.1 (ReTool)"),
            Claim("RL improves SFT on greedy answers too", "SFT + RL", "SFT",
                  "at this size RL sharpens more than it teaches", on="unseen.greedy"),
            Claim("both beat RL alone", "SFT + RL", "RL alone",
                  "a base model that already writes programs needs little SFT"),
        ),
        columns=(*ACCURACY, "facts.sampled", "facts.code_ratio", "training.mismatch_max"),
    )  # fmt: skip


def start(s: Sizes) -> Row:
    """RL from the SFT model and from the base model."""
    first = base(s)
    return Row(
        "Warm and cold start",
        "RL from the SFT model and from the base model, along the same steps.",
        {
            "base": Variant(first, "44.1 (R1-CI 14B)"),
            "cold": Variant(grpo(s, first), "barely improves (R1-CI)"),
            "warm": Variant(grpo(s, sft(s, first)), "64.1 (R1-CI 14B)"),
        },
        (
            Claim("a warm start ends higher", "warm", "cold",
                  "a base model that already writes programs needs little SFT"),
            Claim("a cold start barely improves the base", "cold", "base",
                  "the base writes programs in most answers, so that RL finds right ones to reward; a large "
                  "text-only model has to find the form first", near=0.05),
        ),
        curves=("reward", "code_ratio"),
    )  # fmt: skip


def algorithms(s: Sizes) -> Row:
    """GRPO, PPO and REINFORCE++ on the same questions."""
    tuned = sft(s, base(s))
    plus = grpo(s, tuned, advantage="reinforce++", kl_coef=0.001, updates=2)
    why = "40 steps are few; the algorithms differ in speed before they differ in what they reach"
    return Row(
        "GRPO, PPO, REINFORCE++",
        "The same questions and episodes per step. PPO makes four optimiser steps on each rollout batch, "
        "REINFORCE++ two, GRPO one.",
        {
            "SFT": Variant(tuned),
            "GRPO": Variant(grpo(s, tuned), "64.1 (R1-CI 14B)"),
            "PPO": Variant(ppo(s, tuned), "comparable (R1-CI)"),
            "REINFORCE++": Variant(plus, "comparable (R1-CI)"),
        },
        (
            Claim("PPO is within .05 of GRPO", "PPO", "GRPO", why, near=0.05),
            Claim("REINFORCE++ is within .05 of GRPO", "REINFORCE++", "GRPO", why, near=0.05),
        ),
        columns=(*ACCURACY, "training.entropy", "training.ratio_max", "seconds"),
        curves=("reward", "entropy"),
    )


TWICE = {"updates": 2}  # so that ratios leave 1 and the objectives differ
OBJECTIVES: dict[str, dict] = {
    "two updates": TWICE,
    "dual clip": {"dual_clip": 3.0, **TWICE},
    "GSPO": {"kind": "gspo", "weights": "seq_mean", "clip_low": 3e-4, "clip_high": 4e-4, **TWICE},
    "CISPO": {"kind": "cispo", **TWICE},
    "sequence mean": {"weights": "seq_mean"},
    "Dr. GRPO": {"weights": "constant", "advantage": "group_mean"},
    "entropy bonus": {"entropy_coef": 0.001},
    "sampler's weights": {"importance_cap": 2.0},
    "equal groups dropped": {"drop_equal_groups": True},
    "overlong filter": {"filter_overlong": True},
}


def objectives(s: Sizes) -> Row:
    """Variants of the objective that grpo.py and ppo.py offer."""
    tuned = sft(s, base(s))
    found = {"SFT": Variant(tuned), "GRPO": Variant(grpo(s, tuned, 0.5, eval_every=0))}
    found |= {
        name: Variant(grpo(s, tuned, 0.5, eval_every=0, **options)) for name, options in OBJECTIVES.items()
    }
    found["overlong penalty"] = Variant(grpo(s, tuned, 0.5, eval_every=0, overlong_buffer=s.tokens // 3))
    found["PPO, lambda .95"] = Variant(ppo(s, tuned, 0.5, eval_every=0, lam=0.95))
    found["PPO, KL in the reward"] = Variant(ppo(s, tuned, 0.5, eval_every=0, kl_coef=0.001))
    return Row(
        "Objectives that the scripts offer",
        "Half as many steps; neither paper has this comparison.",
        found,
        tuple(
            Claim(f"{name} improves SFT", name, "SFT", "20 steps may be too few", "seen.sampled")
            for name in found
            if name != "SFT"
        ),
        ours=True,
        columns=(
            *("seen.sampled", "unseen.sampled", "training.first", "training.last"),
            *("training.entropy", "training.ratio_max", "training.skipped", "seconds"),
        ),
    )


def masking(s: Sizes) -> Row:
    """Interpreter tokens masked and unmasked, in SFT and in RL."""
    start = base(s)
    tuned = sft(s, start)
    return Row(
        "Interpreter tokens masked and unmasked",
        "Masked: what the interpreter wrote carries no loss. Both RL runs start from the masked SFT model.",
        {
            "SFT, masked": Variant(tuned, "the papers' choice"),
            "SFT, unmasked": Variant(sft(s, start, train_on_tool_output=True), "worse (R1-CI)"),
            "RL, masked": Variant(grpo(s, tuned), "the papers' choice"),
            "RL, unmasked": Variant(grpo(s, tuned, train_on_tool_output=True), "worse (R1-CI)"),
        },
        (
            Claim("masking helps SFT", "SFT, masked", "SFT, unmasked",
                  "few trajectories have few results, and the base has learnt none either"),
            Claim("masking helps RL", "RL, masked", "RL, unmasked", "results are short numbers here"),
        ),
    )  # fmt: skip


def answer_formats(s: Sizes) -> Row:
    """The papers' answer formats, each after SFT and RL of its own."""
    start = mixed_base(s)
    found = {}
    for name in FORMATS:
        tuned = sft(s, start, protocol=name)
        # longer marks, and head prompts that are no single token of this tokenizer
        room = {"max_tokens": 2 * s.tokens, "max_prompt": 256}
        trained = grpo(s, tuned, 0.75, protocol=name, **room)
        found[f"SFT, {name}"] = Variant(tuned, "", name, 2)
        found[f"RL, {name}"] = Variant(trained, "n.s.", name, 2)
    return Row(
        "Answer formats",
        "From a base model that has seen each format equally often. Its tokenizer was trained on r1ci texts, "
        "so that other formats take more tokens.",
        found,
        tuple(
            Claim(f"{name} is within .05 of r1ci after RL", f"RL, {name}", "RL, r1ci",
                  "longer answers are harder for this tokenizer", near=0.05)
            for name in FORMATS[1:]
        ),
        columns=(*ACCURACY, "behaviour.response_tokens", "behaviour.answered"),
    )  # fmt: skip


def sft_data(s: Sizes) -> Row:
    """Right and wrong, single- and multi-turn trajectories."""
    start = base(s)

    def twice(**options) -> Stage:
        return sft(s, start, count=2 * s.trajectories, **options)

    few = "the trajectories are few, and the base has habits of both kinds"
    return Row(
        "What SFT learns from",
        "96 trajectories each. With wrong ones: half of the programs have a silent mistake. Multi-turn: half "
        "of the trajectories repair a failed program.",
        {
            "base": Variant(start),
            "right only, single-turn": Variant(twice(repair=0.0)),
            "right only, multi-turn": Variant(twice(repair=0.5), "the papers' choice"),
            "with wrong, multi-turn": Variant(twice(repair=0.5, wrong=0.5), "worse (R1-CI)"),
        },
        (
            Claim("wrong answers hurt", "right only, multi-turn", "with wrong, multi-turn", few),
            Claim("multi-turn trajectories help", "right only, multi-turn", "right only, single-turn", few),
            Claim("multi-turn trajectories teach repair", "right only, multi-turn", "right only, single-turn",
                  few, on="behaviour.repaired"),
        ),
        columns=(*ACCURACY, "behaviour.calls_failed", "behaviour.repaired"),
        left_out="Varied and uniform head prompts: the embedded tokenizer has one head prompt per protocol.",
    )  # fmt: skip


def curriculum(s: Sizes) -> Row:
    """Orders of the same questions, measured before RL or along it."""
    tuned = sft(s, base(s))

    def measured(model: Stage) -> Stage:
        options = {"questions": s.measured, "samples": s.samples, "ways": "free"}
        return Stage("curriculum", options, model)

    def staged(model: Stage, share: float, order: str = "curriculum") -> Stage:
        every = max(1, round(share * s.steps / 4))
        made = grpo(s, model, share, order=order, stage_steps=every, eval_every=0)
        return dataclasses.replace(made, course=measured(model))

    return Row(
        "Curriculum",
        "Half as many steps, in four stages, on the same measured questions. Stages are intervals of the "
        "potential, or groups of equal size. Online: after half of the steps the model so far measures the "
        "questions again; AdamW begins anew there.",
        {
            "SFT": Variant(tuned),
            "no order": Variant(staged(tuned, 0.5, "none"), "+3.4 over SFT (R1-CI, v1)"),
            "by difficulty": Variant(staged(tuned, 0.5, "difficulty"), "n.s."),
            "curriculum, offline": Variant(staged(tuned, 0.5), "+9.3 over SFT (R1-CI)"),
            "curriculum, equal groups": Variant(staged(tuned, 0.5, "equal"), "n.s."),
            "curriculum, online": Variant(staged(staged(tuned, 0.25), 0.25), "n.s."),
        },
        (
            Claim("the curriculum beats no order", "curriculum, offline", "no order",
                  "the questions are alike: what one teaches, all teach", paper="+5.9"),
            Claim("the curriculum beats the order by difficulty", "curriculum, offline", "by difficulty",
                  "the questions are alike: what one teaches, all teach"),
            Claim("the curriculum gives more groups to learn from", "curriculum, offline", "no order",
                  "few questions have a large potential", on="training.groups_mixed"),
        ),
        columns=(*ACCURACY, "training.groups_mixed", "training.stage_questions"),
    )  # fmt: skip


def reward(s: Sizes) -> Row:
    """Rewards for the outcome, with form, and with cost."""
    tuned = sft(s, base(s))
    why = "nearly every answer of the SFT model has the form already"
    return Row(
        "Rewards",
        "outcome: 1 or 0. With form: R1-CI's, ±.1 for the answer's form. With cost: 5 % less per program.",
        {
            "SFT": Variant(tuned),
            "outcome": Variant(grpo(s, tuned, reward="outcome"), "64.1 (R1-CI 14B, v1)"),
            "with form": Variant(grpo(s, tuned, reward="r1ci"), "72.4 (R1-CI 14B, with the curriculum)"),
            "with cost": Variant(grpo(s, tuned)),
        },
        (
            Claim("a reward for form does not change accuracy by more than .05", "with form", "outcome", why,
                  near=0.05),
            Claim("a cost per program lowers their number", "outcome", "with cost",
                  "most right answers need one program already", on="behaviour.calls"),
        ),
        columns=(*ACCURACY, "facts.code_ratio", "behaviour.calls", "behaviour.answered"),
    )  # fmt: skip


def kl(s: Sizes) -> Row:
    """With and without KL to the starting model."""
    tuned = sft(s, base(s))
    return Row(
        "KL to the starting model",
        "The coefficient of KL in GRPO's loss.",
        {
            "SFT": Variant(tuned),
            "KL 0": Variant(grpo(s, tuned), "ReTool's choice"),
            "KL .001": Variant(grpo(s, tuned, kl_coef=0.001), "R1-CI's choice"),
        },
        (
            Claim("either choice works: within .05", "KL .001", "KL 0",
                  "the coefficient is small beside this learning rate", near=0.05),
        ),
        columns=(*ACCURACY, "training.entropy"),
        curves=("reward", "entropy"),
    )  # fmt: skip


def tasks(s: Sizes) -> Row:
    """RL on few and on many tasks."""
    tuned = sft(s, base(s))
    found = {"SFT": Variant(tuned)}
    order = names("toy", "train")
    random.Random("tasks").shuffle(order)
    for count in (5, 20, len(order)):
        # repeated, so that one question in ten stays a fact
        chosen = order[:count] * (len(order) // count)
        options = {"tasks": ",".join(chosen + ["facts"] * 4)} if count < len(order) else {}
        found[f"{count} tasks"] = Variant(grpo(s, tuned, **options))
    return Row(
        "Number of tasks trained on",
        "RL on the first tasks of a shuffled list. All 107 count as seen, whether RL trained on them or not.",
        found,
        (
            Claim("more tasks carry over better", f"{len(order)} tasks", "5 tasks",
                  "five tasks contain most operations already"),
            Claim("twenty tasks carry over worse than all", f"{len(order)} tasks", "20 tasks",
                  "twenty tasks contain every operation already"),
        ),
    )  # fmt: skip


BEHAVIOUR = ("code_ratio", "calls", "code_lines", "calls_ran", "first_call", "response_tokens", "repaired")
BEHAVIOUR += ("self_checked",)


def behaviour(s: Sizes) -> Row:
    """How answers change along RL, from the run's own log."""

    def along(says: str, name: str, guess: str, falls: bool = False, paper: str = "n.s.") -> Claim:
        begin, end = f"curve.{name}.0", f"curve.{name}.-1"
        on, than = (begin, end) if falls else (end, begin)
        return Claim(says, "SFT + RL", "SFT + RL", guess, on, than, paper=paper)

    short = "the embedded model writes one short program per answer; there is little to change"
    return Row(
        "Behaviour along training",
        "From the log of the RL run itself: first and last eighth of its steps. Lines, timing, repair and "
        "self-check are of the logged episodes, a group per step.",
        {"SFT + RL": Variant(grpo(s, sft(s, base(s))))},
        (
            along("more answers use code", "code_ratio",
                  "a question in ten is a fact, and the cost teaches to answer it without", paper="to 98 %"),
            along("programs get longer", "code_lines", short, paper="x5 (ReTool)"),
            along("more programs run without error", "calls_ran", short),
            along("the first program comes earlier", "first_call", short, falls=True),
            along("answers get shorter", "response_tokens", short, True, "10k to 6k (ReTool)"),
            along("failed programs are repaired more often", "repaired", "few programs fail at the end"),
            along("more answers are checked by code", "self_checked",
                  "no trajectory of the base or of SFT checks itself, and RL does not invent it"),
        ),
        columns=tuple(f"curve.{name}.{place}" for name in BEHAVIOUR for place in (0, -1)),
        curves=BEHAVIOUR,
    )  # fmt: skip


ROWS: dict[str, Callable[[Sizes], Row]] = {
    "stages": stages,
    "start": start,
    "behaviour": behaviour,
    "algorithms": algorithms,
    "masking": masking,
    "reward": reward,
    "kl": kl,
    "tasks": tasks,
    "sft-data": sft_data,
    "curriculum": curriculum,
    "modes": modes,
    "formats": answer_formats,
    "objectives": objectives,
}


def all_rows(sizes: Sizes) -> dict[str, Row]:
    """Every comparison by name, in the order in which they run: those that share most come first."""
    return {name: row(sizes) for name, row in ROWS.items()}
