"""What fits: the memory of a training run per rank, computed from a model's shape before anything is loaded.

    python -m analysis.plan --model DIR --gpus 8 --memory-gb 80 --prompt 2048 --response 8192 --group 8

Only DIR/config.json is read. Each term below is a tensor (or all tensors of a kind) that the scripts hold,
and the plan is their sum at the two moments that matter: the peak of an update and the peak of a rollout.

    on CUDA          FSDP2 over all ranks: float32 weights, gradients and AdamW's moments in shards; bfloat16
                     compute on blocks gathered as they are needed; embedding, head and last norm stay
                     gathered, and while sampling so does everything. The cache is freed for the update.
                     --offload keeps all shards on the host
    on a CPU         one rank: float32, and a second, packed copy of the weights for sampling (decode.Packed)

bench/memory.py compares with measured peaks. Bytes are bytes; GB are 10^9 of them, KiB 1024.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import model as models
from fast.head import LOGITS_AT_ONCE
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import WHOLE_SHARE

ALGORITHMS = ("sft", "grpo", "ppo")


SHAPES = {  # the published config.json of Qwen2.5, which has them under these names
    name: models.Config(vocabulary, width, feed_forward, layers, heads, kv_heads, tie_word_embeddings=tied)
    for name, vocabulary, width, feed_forward, layers, heads, kv_heads, tied in (
        ("0.5B", 151936, 896, 4864, 24, 14, 2, True),
        ("1.5B", 151936, 1536, 8960, 28, 12, 2, True),
        ("3B", 151936, 2048, 11008, 36, 16, 2, True),
        ("7B", 152064, 3584, 18944, 28, 28, 4, False),
        ("14B", 152064, 5120, 13824, 48, 40, 8, False),
        ("32B", 152064, 5120, 27648, 64, 40, 8, False),
    )
}


FED = 8192  # tokens of prompts fed in one step: sample.CHUNK, and a group's prompt is fed once


PASS = 1024  # of which a CPU computes so many at a time, or one prompt: decode.PASS


LIMITS = {  # bytes/s of memory, operations/s, and what has them
    "cuda": (2.0e12, 312e12, "an A100's data sheet"),
    "cpu": (10e9, 160e9, "a core with 10 GB/s and 160 GFLOP/s"),
}


@dataclass(frozen=True)
class Config:
    model: str = option(
        "tiny", "checkpoint folder, of which only config.json is read; tiny: the embedded shape"
    )
    algorithm: str = option("grpo", "sft, grpo or ppo")
    gpus: int = option(1, "ranks; on a CPU always 1", least=1)
    memory_gb: float = option(80.0, "memory of one GPU, or of the machine on a CPU, in 10^9 bytes", above=0)
    spare: float | None = option(
        None,
        "share of it left alone; without it .1 on CUDA, for context, NCCL and fragmentation, and .25 on a "
        "CPU, where the C library keeps freed blocks (bench/memory.py)",
        least=0,
        most=0.9,
    )
    device: str = option("cuda", "cuda: bfloat16 compute in shards; cpu: float32 on one rank")
    prompt: int = option(2048, "tokens of the longest prompt", least=1)
    response: int = option(8192, "tokens of the longest answer, the interpreter's included", least=1)
    prompts: int = option(16, "questions per step; of sft: trajectories", least=1)
    group: int = option(8, "episodes per question", least=1)
    slots: int | None = option(None, "episodes decoded at once per rank; without it, as many as fit", least=1)
    micro_tokens: int = option(
        2048, "tokens per forward and backward pass; one sequence is never split", least=1
    )
    checkpointing: bool = option(False, "keep only each block's input, and compute the rest twice")
    offload: bool = option(False, "keep masters, gradients, AdamW's moments and reference on the host")
    kl_coef: float = option(0.0, "above 0 there is a reference model", least=0)
    table: bool = option(False, "print the tables of docs/scale.md instead, whose settings are fixed")

    @property
    def bytes_per_value(self) -> int:
        """Of what is computed with: activations, gathered weights, the cache."""
        return 2 if self.device == "cuda" else 4

    @property
    def longest(self) -> int:
        return self.prompt + self.response

    @property
    def tokens(self) -> int:
        """The largest micro-batch."""
        return max(self.micro_tokens, self.longest)

    @property
    def episodes(self) -> int:
        """Of the rank that has most, in one step: whole groups."""
        return math.ceil(self.prompts / self.gpus) * (1 if self.algorithm == "sft" else self.group)


def table_parameters(shape: models.Config) -> int:
    """The embedding; an untied head has as many."""
    return shape.vocab_size * shape.hidden_size


def block_parameters(shape: models.Config) -> int:
    """One block: q and o, k and v, their biases; gate, up, down; two norms."""
    width, kv_width = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    attention = 2 * width * width + 2 * width * kv_width + width + 2 * kv_width
    return attention + 3 * width * shape.intermediate_size + 2 * width


def root_parameters(shape: models.Config) -> int:
    """All outside the blocks: embedding, head, last norm."""
    return table_parameters(shape) * (1 if shape.tie_word_embeddings else 2) + shape.hidden_size


def parameters(shape: models.Config) -> int:
    """Of the whole model."""
    return root_parameters(shape) + shape.num_hidden_layers * block_parameters(shape)


def critic_parameters(shape: models.Config) -> int:
    """The actor's body, and one value instead of the head."""
    head = 0 if shape.tie_word_embeddings else table_parameters(shape)
    return parameters(shape) - head + shape.hidden_size + 1


def cache_per_token(shape: models.Config, value: int) -> int:
    """Bytes of one token's keys and values, `value` bytes each number."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * value


def block_activations(shape: models.Config, value: int) -> int:
    """Bytes per token that autograd keeps of one block: each norm's input in float32, its normalised value
    and its output (in bfloat16, CUDA's kernel: input and output); q, k, v and attention's output; gate,
    silu(gate), up and their product."""
    width, kv_width = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    norms = 2 * (4 * width * (value == 4) + 2 * value * width)
    return norms + value * (2 * width + 2 * kv_width + 4 * shape.intermediate_size)


def update_moments(shape: models.Config, cfg: Config) -> dict[str, tuple[int, int]]:
    """(kept activations, working memory) in bytes where a backward pass may need most, by place.

    head        the head's weight has its gradient made, block by block of words: beside it a block's logits,
                log-probs and, with the entropy that GRPO logs, slopes, in float32; below, rounded copies too
    block       the last block's backward: gradients of gate, silu(gate), up and of the block's weights
    embedding   all activations are gone; the table's gradient, tied: beside the head's
    """
    value, tokens, layers = cfg.bytes_per_value, cfg.tokens, shape.num_hidden_layers
    width, sharded = shape.hidden_size, cfg.device == "cuda"
    block, stream = block_activations(shape, value) * tokens, value * width * tokens
    kept = layers * (stream if cfg.checkpointing else block)
    table = value * table_parameters(shape)
    end = 4 * width * tokens + 3 * stream  # the last norm's input, normalised, output; the rows scored
    end += 4 * width * tokens + stream  # the gradient of the rows scored, and a block's share of it
    logits = tokens * min(shape.vocab_size, max(256, LOGITS_AT_ONCE[cfg.device] // tokens))
    per_logit = (12 if cfg.algorithm == "grpo" else 8) + (2 * value if value < 4 else 0)
    tied = table if shape.tie_word_embeddings else 0
    # Gathered gradients of a block or of the root in bfloat16, and in float32 for the sum over ranks.
    gathered = (2 + 4) * block_parameters(shape) if sharded else value * width * shape.intermediate_size
    root = (2 + 4) * root_parameters(shape) if sharded else table + tied
    again = block if cfg.checkpointing else 0
    return {
        "head": (kept, end + table + logits * per_logit),
        "block": (kept, again + 3 * value * shape.intermediate_size * tokens + stream + tied + gathered),
        "embedding": (0, stream + root),
    }


def trained(shape: models.Config, cfg: Config) -> int:
    """Parameters that an optimiser steps on: PPO has a critic too."""
    return parameters(shape) + (critic_parameters(shape) if cfg.algorithm == "ppo" else 0)


def shards(shape: models.Config, cfg: Config) -> dict[str, float]:
    """Bytes per rank of what is spread over the ranks and there all the time, by kind; a frozen reference
    needs no float32 masters."""
    found = {"weights": 4 * trained(shape, cfg), "AdamW's moments": 8 * trained(shape, cfg)}
    if cfg.kl_coef and cfg.algorithm != "sft":
        found["reference"] = cfg.bytes_per_value * parameters(shape)
    return {kind: size / cfg.gpus for kind, size in found.items()}


def host(shape: models.Config, cfg: Config) -> float:
    """Bytes per rank on the host with --offload: all shards, gradients too."""
    return sum(shards(shape, cfg).values()) + 4 * trained(shape, cfg) / cfg.gpus


def update(shape: models.Config, cfg: Config) -> dict[str, float]:
    """Bytes per rank at the peak of an update, by kind: a later micro-batch of a later step, so that
    gradients and moments are there."""
    found = {} if cfg.offload else shards(shape, cfg) | {"gradients": 4 * trained(shape, cfg) / cfg.gpus}
    if cfg.device == "cuda":
        roots = root_parameters(shape) + (table_parameters(shape) if cfg.algorithm == "ppo" else 0)
        found["gathered weights"] = 2 * (roots + 2 * block_parameters(shape))  # a block, and the next
        free = cfg.memory_gb * 1e9 - sum(shards(shape, cfg).values())
        if not cfg.offload and 8 * parameters(shape) <= WHOLE_SHARE * free:
            found["gathered weights"] = 2 * trained(shape, cfg)
            found["whole gradients"] = 4 * trained(shape, cfg)
    elif cfg.algorithm != "sft":
        found["packed weights"] = packed(shape)
    moments = update_moments(shape, cfg)
    place = max(moments, key=lambda name: sum(moments[name]))
    return found | {"activations": moments[place][0], f"working ({place})": moments[place][1]}


def packed(shape: models.Config) -> int:
    """Bytes of decode.Packed's copies: all that is multiplied with, the head also where it is tied."""
    layers = shape.num_hidden_layers * (block_parameters(shape) - 2 * shape.hidden_size)
    return 4 * (layers + table_parameters(shape))


def merged(shape: models.Config) -> int:
    """Bytes of decode.Flash's copies: weights and biases of q, k and v."""
    outputs = shape.hidden_size + 2 * shape.num_key_value_heads * shape.head_dim
    return 2 * shape.num_hidden_layers * outputs * (shape.hidden_size + 1)


def slot(shape: models.Config, cfg: Config) -> int:
    """Bytes of one slot: its keys and values, its uniforms, and while a token is drawn the logits and the
    probabilities, 4 bytes a word each; on CUDA rounded logits too, and all that twice, in graphs and beside
    them."""
    cache = (cfg.longest + 1) * (cache_per_token(shape, cfg.bytes_per_value) + 8)
    return cache + (20 if cfg.device == "cuda" else 8) * shape.vocab_size


def feeding(shape: models.Config, cfg: Config) -> int:
    """Bytes of the activations while prompts are fed, at the widest place: the feed-forward layer."""
    tokens = min(FED, cfg.prompt * cfg.episodes)
    if cfg.device == "cpu":
        tokens = min(tokens, max(PASS, cfg.prompt))
        return tokens * 4 * (2 * shape.intermediate_size + 3 * shape.hidden_size)
    return tokens * 2 * (3 * shape.intermediate_size + 3 * shape.hidden_size)


def rollout(shape: models.Config, cfg: Config, slots: int) -> dict[str, float]:
    """Bytes per rank at the peak of a rollout, by kind."""
    found = {} if cfg.offload else shards(shape, cfg)
    if cfg.device == "cuda":
        found["gathered weights"] = 2 * parameters(shape)
        found["merged q, k, v"] = merged(shape)
    else:
        found["packed weights"] = packed(shape)
    cache = slots * (cfg.longest + 1) * cache_per_token(shape, cfg.bytes_per_value)
    drawing = slots * slot(shape, cfg) - cache
    working = {"prompts": feeding(shape, cfg) + drawing}
    if cfg.device == "cpu":  # the head times the last norm's gain, before it is packed
        working["packing"] = 4 * table_parameters(shape)
    place = max(working, key=lambda name: working[name])
    return found | {"cache": cache, f"working ({place})": working[place]}


def usable(cfg: Config) -> float:
    """Bytes per rank that may be planned with."""
    spare = {"cuda": 0.1, "cpu": 0.25}[cfg.device] if cfg.spare is None else cfg.spare
    return cfg.memory_gb * 1e9 * (1 - spare)


def fitting_slots(shape: models.Config, cfg: Config) -> int:
    """How many slots fit, at most --slots and at most the rank's episodes; 0 where not even one does."""
    room = usable(cfg) - sum(rollout(shape, cfg, 0).values())
    return min(cfg.slots or cfg.episodes, cfg.episodes, max(0, math.floor(room / slot(shape, cfg))))


def fits(shape: models.Config, cfg: Config) -> bool:
    """Whether the update fits, and rollouts with at least one slot, or with all --slots."""
    wanted = min(cfg.slots or 1, cfg.episodes)
    sampled = cfg.algorithm == "sft" or fitting_slots(shape, cfg) >= wanted
    return sampled and sum(update(shape, cfg).values()) <= usable(cfg)


def remedy(shape: models.Config, cfg: Config) -> str:
    """What to type so that it fits, the cheapest first: fewer slots, checkpointing, offload, more ranks; or
    how much memory it takes with both on as many ranks as there are."""
    saving = [{"checkpointing": True}]
    if cfg.device == "cuda":
        saving += [{"offload": True}, {"checkpointing": True, "offload": True}]
    changes = [{}, *saving]
    if cfg.device == "cuda":
        changes += [{"gpus": cfg.gpus * 2**n} | less for n in range(1, 6) for less in ({}, *saving)]
    for change in changes:
        other = replace(cfg, **change, slots=None)
        if fits(shape, other):
            said = {k: v for k, v in change.items() if getattr(cfg, k) != v}
            if cfg.slots and fitting_slots(shape, other) < cfg.slots:
                said["slots"] = fitting_slots(shape, other)
            return "change to " + config.command(replace(Config(), **said))
    other = replace(cfg, **saving[-1], slots=1)
    sums = [sum(update(shape, other).values()), sum(rollout(shape, other, 1).values())]
    need = max(sums[: 1 if cfg.algorithm == "sft" else 2]) * cfg.memory_gb / usable(cfg)
    saved = config.command(replace(Config(), **saving[-1]))
    return f"take {math.ceil(need)} GB and {saved}, or shorten --prompt and --response"


def multiplied(shape: models.Config) -> int:
    """Parameters that a token is multiplied with: not the embedding, which is looked up."""
    return parameters(shape) - (0 if shape.tie_word_embeddings else table_parameters(shape))


def rollout_seconds(shape: models.Config, cfg: Config, slots: int) -> dict[str, float]:
    """Least seconds of a step's rollouts on one rank, if every episode takes all its tokens, by what takes
    them. A decoding step reads all weights, and the cache of all slots, on average half full of answers, and
    multiplies; reading weights and multiplying overlap, so the longer of the two counts."""
    bandwidth, flops, _ = LIMITS[cfg.device]
    steps = math.ceil(cfg.episodes / slots) * cfg.response
    tokens = cfg.episodes * cfg.response
    reading = steps * cfg.bytes_per_value * multiplied(shape) / bandwidth
    multiplying = tokens * 2 * multiplied(shape) / flops
    cache = cache_per_token(shape, cfg.bytes_per_value) * (cfg.prompt + cfg.response / 2)
    weights = {"reading weights": reading} if reading > multiplying else {"arithmetic": multiplying}
    return weights | {"reading the cache": tokens * cache / bandwidth}


def update_seconds(shape: models.Config, cfg: Config) -> float:
    """Least seconds of a step's update on one rank: 2 operations per parameter and token forward, 4 backward,
    2 more with checkpointing, and causal attention, 2 x width x length per layer and token forward. PPO:
    twice that for two models, and log-probs and values before; a reference is one more forward pass."""
    attention = 2 * shape.hidden_size * cfg.longest * shape.num_hidden_layers
    forward = 2 * multiplied(shape) + attention
    passes = {"sft": 3, "grpo": 3, "ppo": 2 * 2 * 3 + 2}[cfg.algorithm] + bool(cfg.kl_coef)
    passes += cfg.checkpointing * {"sft": 1, "grpo": 1, "ppo": 4}[cfg.algorithm]
    return cfg.episodes * cfg.longest * passes * forward / LIMITS[cfg.device][1]


def bottleneck(shape: models.Config, cfg: Config) -> str:
    """One line: which of rollouts and update takes longer, and what it waits for."""
    learn, basis = update_seconds(shape, cfg), f"at the limits of {LIMITS[cfg.device][2]}"
    if cfg.algorithm == "sft":
        return f"the update's arithmetic, {learn:,.0f} s a step {basis}"
    parts = rollout_seconds(shape, cfg, max(1, fitting_slots(shape, cfg)))
    play = sum(parts.values())
    if learn > play:
        return f"the update's arithmetic, {learn:,.0f} s a step beside {play:,.0f} s of rollouts {basis}"
    what = max(parts, key=parts.get)
    return f"rollouts, {what}: {play:,.0f} s a step beside {learn:,.0f} s of update {basis}"


def report(shape: models.Config, cfg: Config) -> str:
    """The plan as a table, with a verdict in its last line."""
    slots = fitting_slots(shape, cfg)
    columns = {"update": update(shape, cfg)}
    if cfg.algorithm != "sft":
        columns["rollout"] = rollout(shape, cfg, min(cfg.slots or max(1, slots), cfg.episodes))
    kinds = list(dict.fromkeys(kind for column in columns.values() for kind in column))
    what = f"{cfg.gpus} x {cfg.memory_gb:g} GB" if cfg.device == "cuda" else f"a CPU's {cfg.memory_gb:g} GB"
    passes = (
        f"passes of {cfg.tokens} tokens" + ", checkpointing" * cfg.checkpointing + ", offload" * cfg.offload
    )
    lines = [
        f"{cfg.algorithm}, {parameters(shape) / 1e9:.2f} B parameters, {what}, {passes}",
        "",
        f"{'GB per rank':<22}" + "".join(f"{name:>10}" for name in columns),
    ]
    for kind in [*kinds, "sum"]:
        sizes = [sum(c.values()) if kind == "sum" else c.get(kind) for c in columns.values()]
        lines.append(f"{kind:<22}" + "".join(f"{'-' if s is None else f'{s / 1e9:.2f}':>10}" for s in sizes))
    lines += [f"{'may take':<22}" + f"{usable(cfg) / 1e9:>10.2f}" * len(columns), ""]
    if cfg.offload:
        lines.append(f"host        {host(shape, cfg) / 1e9:.1f} GB per rank")
    if cfg.algorithm != "sft":
        token, each = cache_per_token(shape, cfg.bytes_per_value) / 1024, slot(shape, cfg) / 1e9
        lines.append(f"slots       {slots} at once, for the {cfg.episodes} episodes of a rank")
        lines.append(f"cache       {token:g} KiB a token, {each:.2f} GB a slot of {cfg.longest} tokens")
    lines += [f"bottleneck  {bottleneck(shape, cfg)}", verdict(shape, cfg, columns)]
    return "\n".join(lines)


def verdict(shape: models.Config, cfg: Config, columns: dict[str, dict[str, float]]) -> str:
    """One line: whether it fits, and if not, what is missing and what to change."""
    if fits(shape, cfg):
        return "verdict     it fits"
    over = {name: (sum(column.values()) - usable(cfg)) / 1e9 for name, column in columns.items()}
    lacks = " and ".join(f"the {name} lacks {gb:.1f} GB" for name, gb in over.items() if gb > 0)
    return f"verdict     it does not fit: {lacks}; {remedy(shape, cfg)}"


def tables() -> str:
    """The tables of docs/scale.md, in Markdown: GPUs of 80 GB, checkpointing throughout."""
    lines = ["| model | parameters | cache, KiB a token |", "|---|---|---|"]
    for name, shape in SHAPES.items():
        token = cache_per_token(shape, 2) / 1024
        lines.append(f"| {name} | {parameters(shape) / 1e9:.2f} B | {token:g} |")
    base = Config(prompts=128, checkpointing=True)
    places = [replace(base, gpus=n, offload=offload) for n in (1, 8, 32) for offload in (False, True)]
    lines += ["", *_head(["model", "", *(f"{c.gpus}{', offload' * c.offload}" for c in places)])]
    for name, shape in SHAPES.items():
        for algorithm in ALGORITHMS:
            cells = [_cell(shape, replace(c, algorithm=algorithm)) for c in places]
            lines.append(f"| {' | '.join([name, algorithm.upper(), *cells])} |")
    lines += ["", *_head(["GPUs", "of 80 GB", "80 GB, offload", "of 141 GB", "141 GB, offload", "host"])]
    shape = SHAPES["32B"]
    long = replace(base, prompts=64, response=16384, algorithm="ppo")
    for gpus in (8, 16, 32, 64):
        wide = [replace(long, gpus=gpus, memory_gb=gb, offload=o) for gb in (80, 141) for o in (False, True)]
        cells = [str(gpus), *(_cell(shape, c) for c in wide), f"{host(shape, wide[-1]) / 1e9:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _cell(shape: models.Config, cfg: Config) -> str:
    """GB per rank: update / rollout without the cache (slots); bold where it is too much."""
    sizes = [sum(update(shape, cfg).values())]
    if cfg.algorithm != "sft":
        sizes.append(sum(rollout(shape, cfg, 0).values()))
    words = " / ".join(f"{s / 1e9:.1f}" if s <= usable(cfg) else f"**{s / 1e9:.1f}**" for s in sizes)
    slots = fitting_slots(shape, cfg)
    return words if cfg.algorithm == "sft" else f"{words} ({slots or '**0**'})"


def check(cfg: Config) -> None:
    """Refuse what cannot be planned. Raises UsageError."""
    if cfg.algorithm not in ALGORITHMS:
        near = config.nearest(cfg.algorithm, ALGORITHMS)
        raise UsageError(f"--algorithm {cfg.algorithm}{near}; expected {', '.join(ALGORITHMS)}")
    if cfg.device not in ("cpu", "cuda"):
        raise UsageError(f"--device {cfg.device}; expected cpu or cuda")
    if cfg.device == "cpu" and (cfg.gpus > 1 or cfg.offload):
        raise UsageError(
            "--gpus above 1 or --offload with --device cpu, which is planned as one rank; leave them out"
        )


def read_shape(name: str) -> models.Config:
    """The shape in a checkpoint folder's config.json, or the embedded one. Raises UsageError."""
    if name == "tiny":
        return models.TINY
    if not Path(name).is_dir():
        raise UsageError(
            f"--model {name}: no such folder; expected one with a checkpoint's config.json, or `tiny`"
        )
    try:
        return models.read_config(name)
    except models.CheckpointError as error:
        raise UsageError(f"--model {name}: {error}") from None


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(Config, __doc__, argv)
    check(cfg)
    print(tables() if cfg.table else report(read_shape(cfg.model), cfg))


if __name__ == "__main__":
    config.run(main, "analysis.plan")
