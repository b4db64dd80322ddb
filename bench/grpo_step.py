"""A whole GRPO step, rollouts and update, against TRL's GRPOTrainer on the same machine in the same run.

    pip install '.[peers]'; python bench/grpo_step.py

64 rollouts (8 prompts x 8) of 192 tokens, 4M parameters, float32, one optimiser step. Then the same with one
program each at a random place, whose result of 20 digits is there at once; the 192 tokens include it. Ours
is the loop of grpo.py: rollout, collate, group_advantages, update. TRL gets the same weights, tokenizer and
prompt texts, one batch per step, no reference model, no checkpoints and no gradient checkpointing, and its
tool loop a tool that returns at once. The two take turns: ours runs whenever TRL has ended a step.

A random model writes no programs, so both sides are scripted (scripted.py): ours reports other tokens at the
scripted places, TRL's generate() is given a logits processor that leaves no other choice there. No token ends
a rollout early; with tools TRL's last one does, so that it generates nothing that it would throw away.
Rewards are random, so that advantages are not zero. Rates count the tokens that the model wrote, without
results.
"""

import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from scripted import Instant, Scripted, Turn, call, plain_tokens, questions, small_tokenizer  # noqa: E402
from shapes import SHAPES, random_model, twin  # noqa: E402
from timing import Row, median, options, parse, per_second, report, speed_row, synchronize  # noqa: E402

import grpo  # noqa: E402
from analysis import plan  # noqa: E402
from episode import collate  # noqa: E402
from plumbing.ranks import World  # noqa: E402
from rollout import Environment, Limits, Request, rollout  # noqa: E402
from tasks import PROTOCOLS  # noqa: E402
from training.slots import sampling  # noqa: E402
from training.steps import adamw  # noqa: E402

RESULT = "1234567890" * 2
TOOL_CALL = '<tool_call>{"name": "run", "arguments": {}}</tool_call>'
TEMPLATE = (  # the embedded tokenizer's, with tool calls, which TRL wants to see in it
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Turns:
    """Seconds of every step, those of them spent in rollouts, and the tokens that the model wrote in one."""

    steps: list[float] = field(default_factory=list)
    rollouts: list[float] = field(default_factory=list)
    tokens: int = 0


class Ours:
    """grpo.py's step on scripted rollouts."""

    def __init__(self, shape: str, dtype: str, tools: bool, chosen):
        model = random_model(shape, torch.float32, chosen.device, chosen.seed).train()
        self.tokenizer = small_tokenizer(min(1024, model.config.vocab_size))
        self.protocol = replace(PROTOCOLS["r1ci" if tools else "text"], prompt=PROTOCOLS["text"].prompt)
        self.problems = questions(chosen.prompts, chosen.question)
        self.prompt = len(self.tokenizer.chat(*self.protocol.opening(self.problems[0].question)))
        count = chosen.prompts * chosen.group
        self.cfg = grpo.Config(
            prompts=chosen.prompts,
            group=chosen.group,
            slots=count,
            max_prompt=self.prompt,
            max_tokens=chosen.new,
            micro_tokens=chosen.micro_tokens,
            lr=1e-6,
            dtype=dtype,
        )
        self.world = World(chosen.device)
        self.model = self.world.shard(model, self.cfg)
        self.optimizer = adamw(self.model, self.cfg.lr)
        block = call(self.tokenizer)
        result = len(self.tokenizer.encode(self.protocol.wrap(RESULT))) if tools else 0
        self.firsts = first_turns(self.tokenizer, count, result, chosen) if tools else [chosen.new] * count
        self.scripts = {
            (chosen.seed, i): [Turn(n, block), Turn(chosen.new)] if tools else [Turn(n)]
            for i, n in enumerate(self.firsts)
        }
        self.limits = Limits(max_calls=1, max_tokens=chosen.new)
        self.plain = plain_tokens(self.tokenizer, self.tokenizer.vocab_size)
        self.turns = Turns()

    def step(self) -> None:
        """One rollout batch and one optimiser step."""
        synchronize()
        start = time.perf_counter()
        group = self.cfg.group
        asked = [Request(self.problems[i // group], i // group, key) for i, key in enumerate(self.scripts)]
        box = Instant(RESULT)
        length = self.cfg.max_prompt + self.cfg.max_tokens
        with sampling(self.model, self.cfg, self.world, len(asked), length=length) as sampler:
            scripted = Scripted(sampler, self.scripts, self.plain)
            episodes = rollout(scripted, Environment(self.tokenizer, self.protocol, box, self.limits), asked)
        synchronize()
        self.turns.rollouts.append(time.perf_counter() - start)
        batch = collate(episodes)
        batch.rewards = torch.rand(len(episodes))
        mask = grpo.loss_mask(batch, episodes, self.cfg)
        data = grpo.make_experience(self.model, None, batch, mask, self.cfg, self.world)
        grpo.update(self.model, self.optimizer, data, batch.lengths, self.cfg, self.world)
        synchronize()
        self.turns.steps.append(time.perf_counter() - start)
        self.turns.tokens = sum(len(e.policy_tokens) for e in episodes)


def first_turns(tokenizer, count: int, result: int, chosen) -> list[int]:
    """Lengths of the turns that end with a call; the same on both sides, and long enough for both."""
    least = max(len(call(tokenizer)), len(tokenizer.encode(TOOL_CALL)) + 1)
    most = chosen.new - result - 24  # TRL's result has the marks of two turns around it
    if most < least:
        raise SystemExit(f"--new {chosen.new}: a call and its result need at least {least + result + 24}")
    rng = random.Random(f"turns {chosen.seed}")
    return [rng.randint(least, most) for _ in range(count)]


# -- TRL -------------------------------------------------------------------------------------------


class Forced:
    """A logits processor: row i gets forced[i][n] as its n-th new token, or any plain one for -1."""

    def __init__(self, width: int, forced: torch.Tensor, plain: torch.Tensor):
        self.width, self.forced, self.plain = width, forced, plain

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.masked_fill(~self.plain, float("-inf"))
        wanted = self.forced[:, tokens.shape[1] - self.width]
        rows = (wanted >= 0).nonzero().squeeze(1)
        scores[rows] = float("-inf")
        scores[rows, wanted[rows]] = 0.0
        return scores


def script_generate(other, ours: Ours, new: int) -> None:
    """Let other.generate() follow the script: a first turn up to its tool call, one up to `new` tokens."""
    stop, original = ours.tokenizer.stop_ids[0], other.generate
    closing = [*ours.tokenizer.encode(TOOL_CALL), stop]
    prompt = ours.prompt
    plain = torch.zeros(other.config.vocab_size, dtype=torch.bool)
    plain[: len(ours.plain)] = torch.tensor(ours.plain)

    def generate(input_ids, attention_mask, **rest):
        forced = torch.full((len(input_ids), new), -1)
        lengths = attention_mask.sum(1).tolist()
        for i, length in enumerate(lengths):
            if length > prompt:  # a result is in it: end with the last token that there is room for
                forced[i, new - (length - prompt) - 1] = stop
            elif ours.firsts[i] < new:
                forced[i, ours.firsts[i] - len(closing) : ours.firsts[i]] = torch.tensor(closing)
        processor = Forced(input_ids.shape[1], forced, plain)
        known = {"attention_mask": attention_mask, "logits_processor": [processor]}
        return original(input_ids, **known, **rest)

    other.generate = generate


def peer_tokenizer(ours: Ours, folder: str):
    """The same tokenizer as transformers' class, with what TRL needs to find tool calls."""
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import qwen3_template

    ours.tokenizer.save(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = qwen3_template
    return tokenizer


def run() -> str:
    """Run the program."""
    return RESULT


def peer_config(ours: Ours, folder: str, chosen):
    """TRL's options for the same step."""
    from trl import GRPOConfig

    count = chosen.prompts * chosen.group
    rows = chosen.peer_rows or count
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=count // rows,
        num_generations=chosen.group,
        max_completion_length=chosen.new,
        max_steps=chosen.warmup + chosen.repeats,
        learning_rate=ours.cfg.lr,
        lr_scheduler_type="constant",
        temperature=1.0,
        top_k=0,
        beta=0.0,
        max_grad_norm=ours.cfg.grad_clip,
        bf16=chosen.dtype == "bf16",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def peer(ours: Ours, tools: bool, folder: str, chosen) -> Turns:
    """Train with TRL for as many steps as there are rounds; `ours` makes one step after each of TRL's."""
    import transformers
    from datasets import Dataset
    from trl import GRPOTrainer

    turns, rng = Turns(), random.Random(0)
    texts = [[("user", ours.protocol.opening(problem.question)[1])] for problem in ours.problems]
    prompts = [{"prompt": [{"role": r, "content": c} for r, c in text]} for text in texts]
    other = twin(random_model(chosen.shape, torch.float32, "cpu", chosen.seed)).train()
    script_generate(other, ours, chosen.new)

    def reward(completions, **_):
        return [rng.random() for _ in completions]

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            turns.steps.append(time.perf_counter() - self.start)
            ours.step()

    class Trainer(GRPOTrainer):
        def _generate(self, prompts):
            start = time.perf_counter()
            found = super()._generate(prompts)
            turns.rollouts.append(time.perf_counter() - start)
            completions, masks = found[1], found[2]
            turns.tokens = sum(map(sum, masks)) if masks else sum(map(len, completions))
            return found

    transformers.utils.logging.set_verbosity_error()
    trainer = Trainer(
        model=other,
        reward_funcs=reward,
        args=peer_config(ours, folder, chosen),
        train_dataset=Dataset.from_list(prompts),
        processing_class=peer_tokenizer(ours, folder),
        tools=[run] if tools else None,
        callbacks=[Clock()],
    )
    trainer.train()
    return turns


# -- the table -------------------------------------------------------------------------------------


def compare(tools: bool, chosen) -> list[Row]:
    """The rows of one setting: whole steps, and with tools rollouts alone too."""
    ours = Ours(chosen.shape, {"fp32": "float32", "bf16": "bfloat16"}[chosen.dtype], tools, chosen)
    theirs = None
    if chosen.against == "trl":
        with tempfile.TemporaryDirectory() as folder:
            theirs = peer(ours, tools, folder, chosen)
    else:
        for _ in range(chosen.warmup + chosen.repeats):
            ours.step()
    rows = []
    asked = {"step": ">= 3x" if tools else ">= 3.5x", "rollout alone": ">= 5x" if tools else ""}
    for what, name in (("step", "steps"), ("rollout alone", "rollouts")):
        seconds = {"ours": getattr(ours.turns, name)[chosen.warmup :]}
        title = (
            f"GRPO {what}, {chosen.shape}, {chosen.dtype}, {len(ours.firsts)} rollouts x {chosen.new} tokens"
        )
        title += ", with tools" if tools else ""
        row = speed_row(title, ours.turns.tokens, seconds, [], asked=asked[what])
        row.note = f"{ours.turns.tokens} tokens, {median(seconds['ours']):.2f} s"
        if theirs:
            seconds["trl"] = getattr(theirs, name)[chosen.warmup :]
            rates = [t.tokens / median(getattr(t, name)[chosen.warmup :]) for t in (ours.turns, theirs)]
            row.ratio, row.against = rates[0] / rates[1], f"trl: {per_second(rates[1], 1)}"
            row.note += f"; {theirs.tokens} tokens, {median(seconds['trl']):.2f} s"
        rows.append(row)
    return rows


def gpu(chosen) -> Row:
    """A step of a large shape in bf16, float32 masters, with tools, ours alone, and its peak memory."""
    title = f"GPU GRPO step with tools, {chosen.gpu_shape}, bf16"
    if chosen.device != "cuda" or not torch.cuda.is_available():
        return Row(title)
    torch.cuda.reset_peak_memory_stats()
    ours = Ours(chosen.gpu_shape, "bfloat16", True, chosen)
    for _ in range(chosen.warmup + chosen.repeats):
        ours.step()
    seconds = {"ours": ours.turns.steps[chosen.warmup :]}
    row = speed_row(title, ours.turns.tokens, seconds, [])
    row.note = (
        f"{median(seconds['ours']):.2f} s, rollout {median(ours.turns.rollouts[chosen.warmup :]):.2f} s; "
    )
    row.note += f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, planned {planned(ours) / 1e9:.1f}"
    return row


def planned(ours: Ours) -> float:
    """What plan.py says of the step's peak, in bytes."""
    cfg, shape = ours.cfg, ours.model.config
    counts = {"prompt": ours.prompt, "response": cfg.max_tokens, "prompts": cfg.prompts, "group": cfg.group}
    work = plan.Config(**counts, slots=cfg.slots, micro_tokens=cfg.micro_tokens)
    peaks = plan.update(shape, work), plan.rollout(shape, work, cfg.slots)
    return max(sum(peak.values()) for peak in peaks)


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("trl",))
    parser.add_argument("--shape", default="4M", choices=SHAPES)
    parser.add_argument("--gpu-shape", default="1.5B", choices=SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="bf16: float32 masters")
    parser.add_argument("--prompts", default=8, type=int)
    parser.add_argument("--group", default=8, type=int, help="rollouts of a prompt")
    parser.add_argument("--new", default=192, type=int, help="tokens of a rollout, results included")
    parser.add_argument("--question", default=50, type=int, help="tokens of it")
    parser.add_argument("--micro-tokens", default=2048, type=int, help="of a forward and backward pass")
    parser.add_argument("--parts", nargs="+", default=("plain", "tools"), choices=("plain", "tools"))
    parser.add_argument("--peer-rows", type=int, help="of TRL's forward pass; by default all")
    chosen = parse(parser, argv)
    if chosen.peer_rows and chosen.prompts * chosen.group % chosen.peer_rows:
        parser.error(
            f"--peer-rows {chosen.peer_rows}: expected a divisor of {chosen.prompts * chosen.group} rollouts"
        )
    if chosen.device == "cuda":  # TRL's side is set up for the CPU
        rows = [gpu(chosen)]
    else:
        rows = [row for part in chosen.parts for row in compare(part == "tools", chosen)] + [gpu(chosen)]
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
