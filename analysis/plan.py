"""What fits: the memory of a training run per rank, from the model's shape alone.

    python -m analysis.plan --model 7B --gpus 8 --memory-gb 80 --prompt 2048 --response 8192 --group 8
    python -m analysis.plan --published          # the papers' runs on 8 x 80 GB

Each term below is the size of tensors that the scripts hold. The plan adds them up at the two moments that
matter: the peak of an update and the peak of a rollout.

    on CUDA     FSDP2 over all ranks. Float32 weights, gradients and AdamW's moments are sharded. Compute is
                in bfloat16, and a block's weights are gathered when it runs. Embedding, head and last norm
                stay gathered; during a rollout all weights do. The cache is freed before the update.
                --offload keeps all shards on the host. One rank without it keeps a bfloat16 copy of all
                weights (plumbing/masters.py).
    on a CPU    one rank, float32, and a second, packed copy of the weights for sampling (fast/cpu.py)

bench/memory.py compares the plan with measured peaks. GB are 10^9 bytes, KiB are 1024.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import model as models
from fast.cpu import PASS
from fast.head import LOGITS_AT_ONCE
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import WHOLE_SHARE
from sample import CHUNK

ALGORITHMS = ("sft", "grpo", "ppo")
SHAPES = {  # Qwen2.5's, from the published config.json
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
LIMITS = {  # memory bandwidth in bytes/s, arithmetic in operations/s, and their source
    "cuda": (2.0e12, 312e12, "an A100's data sheet"),
    "cpu": (10e9, 160e9, "a core with 10 GB/s and 160 GFLOP/s"),
}
SPARE = {"cuda": 0.1, "cpu": 0.25}
PAGE = 256  # tokens, of a cache in pages
R1CI = {"algorithm": "grpo", "prompts": 128, "group": 5, "prompt": 2048, "response": 8192, "kl_coef": 0.001}
RETOOL = {"algorithm": "ppo", "prompts": 64, "group": 8, "prompt": 2048, "response": 14336}
PUBLISHED = {  # a paper's run -> its shape, its options, its steps
    "R1-CI 3B": ("3B", R1CI, 600),
    "R1-CI 7B": ("7B", R1CI, 600),
    "R1-CI 14B": ("14B", R1CI, 600),
    "ReTool 7B": ("7B", RETOOL, 400),
    "ReTool 14B": ("14B", RETOOL, 400),
    "ReTool 32B": ("32B", RETOOL, 400),
}


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", f"folder with a config.json, or one of tiny, {', '.join(SHAPES)}")
    algorithm: str = option("grpo", "sft, grpo or ppo")
    gpus: int = option(1, "ranks; on a CPU always 1", least=1)
    memory_gb: float = option(80.0, "memory of one GPU, or of the machine on a CPU, in 10^9 bytes", above=0)
    spare: float | None = option(
        None,
        "share of the memory that the plan leaves free; by default .1 on CUDA, for context, NCCL and "
        "fragmentation, and .25 on a CPU, where the C library keeps freed memory (bench/memory.py)",
        least=0,
        most=0.9,
    )
    device: str = option("cuda", "cuda: bfloat16 compute in shards; cpu: float32 on one rank")
    prompt: int = option(2048, "tokens of the longest prompt", least=1)
    response: int = option(8192, "tokens of the longest response, tool tokens included", least=1)
    prompts: int = option(16, "questions per step; of sft: trajectories", least=1)
    group: int = option(8, "episodes per question", least=1)
    slots: int | None = option(None, "sequences decoded at once per rank; by default all that fit", least=1)
    micro_tokens: int = option(2048, "tokens per micro-batch; one sequence is never split", least=1)
    checkpointing: bool = option(False, "keep only the input of each block, and compute the rest twice")
    offload: bool = option(False, "keep masters, gradients, AdamW's moments and reference on the host")
    kl_coef: float = option(0.0, "above 0 there is a reference model", least=0)
    published: bool = option(False, "a line for each of the papers' runs, with --gpus of --memory-gb")

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one activation, gathered weight or cache entry."""
        return 2 if self.device == "cuda" else 4

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 gathers weights."""
        return self.device == "cuda" and (self.gpus > 1 or self.offload)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + self.response

    @property
    def tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(self.micro_tokens, self.longest)

    @property
    def episodes(self) -> int:
        """Episodes of one step on the rank that has most; a group is not split."""
        return math.ceil(self.prompts / self.gpus) * (1 if self.algorithm == "sft" else self.group)


def embedding_parameters(shape: models.Config) -> int:
    """Parameters of the embedding; an untied head has as many."""
    return shape.vocab_size * shape.hidden_size


def block_parameters(shape: models.Config) -> int:
    """Parameters of one block: q and o, k and v, their biases; gate, up, down; two norms."""
    width, kv_width = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    attention = 2 * width * width + 2 * width * kv_width + width + 2 * kv_width
    return attention + 3 * width * shape.intermediate_size + 2 * width


def root_parameters(shape: models.Config) -> int:
    """Parameters outside the blocks: embedding, head, last norm."""
    return embedding_parameters(shape) * (1 if shape.tie_word_embeddings else 2) + shape.hidden_size


def parameters(shape: models.Config) -> int:
    """Parameters of the model."""
    return root_parameters(shape) + shape.num_hidden_layers * block_parameters(shape)


def multiplied(shape: models.Config) -> int:
    """Parameters that a token is multiplied with: not an untied embedding, which is looked up."""
    return parameters(shape) - (0 if shape.tie_word_embeddings else embedding_parameters(shape))


def trained(shape: models.Config, cfg: Config) -> int:
    """Parameters in the optimiser. PPO's critic is a second body with one value in place of the head."""
    critic = multiplied(shape) + shape.hidden_size + 1
    return parameters(shape) + (critic if cfg.algorithm == "ppo" else 0)


def block_activations(shape: models.Config, value: int) -> int:
    """Bytes per token that autograd keeps of one block, `value` bytes per number: of each norm its float32
    input, its normalised value and its output (CUDA's bfloat16 kernel: input and output); q, k, v and the
    attention's output; gate, silu(gate), up and their product."""
    width, kv_width = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
    norms = 2 * (4 * width * (value == 4) + 2 * value * width)
    return norms + value * (2 * width + 2 * kv_width + 4 * shape.intermediate_size)


def update_peaks(shape: models.Config, cfg: Config) -> dict[str, tuple[int, int]]:
    """(kept activations, working memory) in bytes at the three places where a backward pass may need most.

    head        the gradient of the head's weight is made in vocabulary chunks. A chunk has float32 logits,
                log-probs and, with the entropy that GRPO logs, slopes; below float32, rounded copies too.
    block       backward of the last block: gradients of gate, silu(gate), up and of the block's weights
    embedding   all activations are freed; a tied gradient of the embedding is beside the head's.
    """
    value, tokens, layers = cfg.bytes_per_value, cfg.tokens, shape.num_hidden_layers
    width, sharded = shape.hidden_size, cfg.sharded
    block, stream = block_activations(shape, value) * tokens, value * width * tokens
    kept = layers * (stream if cfg.checkpointing else block)
    table = value * embedding_parameters(shape)
    end = 4 * width * tokens + 3 * stream  # the last norm: input, normalised value, output; the scored rows
    end += 4 * width * tokens + stream  # the gradient of the scored rows, and what a chunk adds to it
    logits = tokens * min(shape.vocab_size, max(256, LOGITS_AT_ONCE[cfg.device] // tokens))
    per_logit = (12 if cfg.algorithm == "grpo" else 8) + (2 * value if value < 4 else 0)
    tied = table if shape.tie_word_embeddings else 0
    # Gathered gradients are there in bfloat16, and in float32 for the sum over ranks.
    gathered = (2 + 4) * block_parameters(shape) if sharded else value * width * shape.intermediate_size
    root = (2 + 4) * root_parameters(shape) if sharded else table + tied
    again = block if cfg.checkpointing else 0
    return {
        "head": (kept, end + table + logits * per_logit),
        "block": (kept, again + 3 * value * shape.intermediate_size * tokens + stream + tied + gathered),
        "embedding": (0, stream + root),
    }


def shards(shape: models.Config, cfg: Config) -> dict[str, float]:
    """Bytes per rank of what is sharded and always there, by kind. A reference has no float32 masters."""
    found = {"weights": 4 * trained(shape, cfg), "AdamW's moments": 8 * trained(shape, cfg)}
    if cfg.kl_coef and cfg.algorithm != "sft":
        found["reference"] = cfg.bytes_per_value * parameters(shape)
    return {kind: size / cfg.gpus for kind, size in found.items()}


def host(shape: models.Config, cfg: Config) -> float:
    """Bytes per rank on the host with --offload: all shards, and the gradients."""
    return sum(shards(shape, cfg).values()) + 4 * trained(shape, cfg) / cfg.gpus


def update(shape: models.Config, cfg: Config) -> dict[str, float]:
    """Bytes per rank at the peak of an update, by kind. Gradients and moments of earlier passes are there."""
    found = {} if cfg.offload else shards(shape, cfg) | {"gradients": 4 * trained(shape, cfg) / cfg.gpus}
    if cfg.sharded:
        roots = root_parameters(shape) + (embedding_parameters(shape) if cfg.algorithm == "ppo" else 0)
        found["gathered weights"] = 2 * (roots + 2 * block_parameters(shape))  # a block, and the next
        free = cfg.memory_gb * 1e9 - sum(shards(shape, cfg).values())
        if not cfg.offload and 8 * parameters(shape) <= WHOLE_SHARE * free:
            found["gathered weights"] = 2 * trained(shape, cfg)
            found["whole gradients"] = 4 * trained(shape, cfg)
    elif cfg.device == "cuda":
        found["bfloat16 weights"] = 2 * trained(shape, cfg)
    elif cfg.algorithm != "sft":
        found["packed weights"] = packed(shape)
    peaks = update_peaks(shape, cfg)
    place = max(peaks, key=lambda name: sum(peaks[name]))
    return found | {"activations": peaks[place][0], f"working ({place})": peaks[place][1]}


def packed(shape: models.Config) -> int:
    """Bytes of the packed weights in fast/cpu.py: every matrix that is multiplied, a tied head too."""
    layers = shape.num_hidden_layers * (block_parameters(shape) - 2 * shape.hidden_size)
    return 4 * (layers + embedding_parameters(shape))


def merged(shape: models.Config) -> int:
    """Bytes of the merged weights in fast/cuda.py: q, k and v with their biases."""
    outputs = shape.hidden_size + 2 * shape.num_key_value_heads * shape.head_dim
    return 2 * shape.num_hidden_layers * outputs * (shape.hidden_size + 1)


def cache_per_token(shape: models.Config, value: int) -> int:
    """Bytes of one token's keys and values, `value` bytes per number."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * value


def slot(shape: models.Config, cfg: Config) -> int:
    """Bytes of one slot: keys and values, uniforms, and one token's float32 logits and probabilities. On CUDA
    there are rounded logits too, and the CUDA graphs hold all three once more."""
    cache = (cfg.longest + 1) * (cache_per_token(shape, cfg.bytes_per_value) + 8)
    return cache + (20 if cfg.device == "cuda" else 8) * shape.vocab_size


def prefill(shape: models.Config, cfg: Config) -> int:
    """Bytes of the activations of the prompts' tokens in the feed-forward layer, the widest place."""
    tokens = min(CHUNK, cfg.prompt * cfg.episodes)
    if cfg.device == "cpu":
        tokens = min(tokens, max(PASS, cfg.prompt))
        return tokens * 4 * (2 * shape.intermediate_size + 3 * shape.hidden_size)
    return tokens * 2 * (3 * shape.intermediate_size + 3 * shape.hidden_size)


def rollout(shape: models.Config, cfg: Config, slots: int) -> dict[str, float]:
    """Bytes per rank at the peak of a rollout with this many slots, by kind."""
    found = {} if cfg.offload else shards(shape, cfg)
    if cfg.device == "cuda":
        if cfg.sharded:
            found["gathered weights"] = 2 * parameters(shape)
        else:
            found["bfloat16 weights"] = 2 * trained(shape, cfg)
        found["merged q, k, v"] = merged(shape)
    else:
        found["packed weights"] = packed(shape)
    cache = slots * (cfg.longest + 1) * cache_per_token(shape, cfg.bytes_per_value)
    working = {"prompts": prefill(shape, cfg) + slots * slot(shape, cfg) - cache}
    if cfg.device == "cpu":  # the head times the last norm's gain, before it is packed
        working["packing"] = 4 * embedding_parameters(shape)
    place = max(working, key=working.get)
    return found | {"cache": cache, f"working ({place})": working[place]}


def usable(cfg: Config) -> float:
    """Bytes per rank that the plan may use."""
    return cfg.memory_gb * 1e9 * (1 - (SPARE[cfg.device] if cfg.spare is None else cfg.spare))


def fitting_slots(shape: models.Config, cfg: Config) -> int:
    """The number of slots that fit, at most --slots and the rank's episodes; 0 if not even one does."""
    room = usable(cfg) - sum(rollout(shape, cfg, 0).values())
    return min(cfg.slots or cfg.episodes, cfg.episodes, max(0, math.floor(room / slot(shape, cfg))))


def fits(shape: models.Config, cfg: Config) -> bool:
    """Whether the update fits, and a rollout with --slots slots, or with one."""
    wanted = min(cfg.slots or 1, cfg.episodes)
    sampled = cfg.algorithm == "sft" or fitting_slots(shape, cfg) >= wanted
    return sampled and sum(update(shape, cfg).values()) <= usable(cfg)


def remedy(shape: models.Config, cfg: Config) -> str:
    """The first change of options with which the run fits, from the cheapest: fewer slots, checkpointing,
    offload, more ranks. If there is none, the memory that it needs with checkpointing and offload."""
    savings = [{}, {"checkpointing": True}]
    if cfg.device == "cuda":
        savings += [{"offload": True}, {"checkpointing": True, "offload": True}]
    ranks = [cfg.gpus * 2**n for n in range(6 if cfg.device == "cuda" else 1)]
    for gpus, saving in itertools.product(ranks, savings):
        other = replace(cfg, gpus=gpus, slots=None, **saving)
        if fits(shape, other):
            changed = {k: v for k, v in {"gpus": gpus, **saving}.items() if getattr(cfg, k) != v}
            if cfg.slots and fitting_slots(shape, other) < cfg.slots:
                changed["slots"] = fitting_slots(shape, other)
            return "change to " + config.command(replace(Config(), **changed))
    other = replace(cfg, slots=1, **savings[-1])
    sums = [sum(update(shape, other).values()), sum(rollout(shape, other, 1).values())]
    need = max(sums[: 1 if cfg.algorithm == "sft" else 2]) * cfg.memory_gb / usable(cfg)
    saved = config.command(replace(Config(), **savings[-1]))
    return f"take {math.ceil(need)} GB and {saved}, or shorten --prompt and --response"


def rollout_seconds(shape: models.Config, cfg: Config, slots: int) -> dict[str, float]:
    """Lower bound of a step's rollout on one rank, in seconds by cause; every response has its full length.
    A decoding step reads all weights, and the cache, which holds half a response on average. Reading the
    weights and multiplying overlap: the longer of the two counts."""
    bandwidth, flops, _ = LIMITS[cfg.device]
    steps = math.ceil(cfg.episodes / slots) * cfg.response
    tokens = cfg.episodes * cfg.response
    reading = steps * cfg.bytes_per_value * multiplied(shape) / bandwidth
    multiplying = tokens * 2 * multiplied(shape) / flops
    cache = cache_per_token(shape, cfg.bytes_per_value) * (cfg.prompt + cfg.response / 2)
    weights = {"reading weights": reading} if reading > multiplying else {"arithmetic": multiplying}
    return weights | {"reading the cache": tokens * cache / bandwidth}


def update_seconds(shape: models.Config, cfg: Config) -> float:
    """Lower bound of a step's update on one rank, in seconds. Forward takes 2 operations per parameter and
    token, and causal attention 2 x width x length per layer and token. Backward is two forward passes,
    checkpointing and a reference one each. PPO: two epochs of two models, after one pass of each."""
    attention = 2 * shape.hidden_size * cfg.longest * shape.num_hidden_layers
    forward = 2 * multiplied(shape) + attention
    passes = {"sft": 3, "grpo": 3, "ppo": 2 * 2 * 3 + 2}[cfg.algorithm] + bool(cfg.kl_coef)
    passes += cfg.checkpointing * {"sft": 1, "grpo": 1, "ppo": 4}[cfg.algorithm]
    return cfg.episodes * cfg.longest * passes * forward / LIMITS[cfg.device][1]


def bottleneck(shape: models.Config, cfg: Config) -> str:
    """One line: whether rollouts or updates take longer, and what limits them."""
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
    what = f"{cfg.gpus} x {cfg.memory_gb:g} GB" if cfg.device == "cuda" else f"a CPU's {cfg.memory_gb:g} GB"
    passes = f"passes of {cfg.tokens} tokens"
    passes += ", checkpointing" * cfg.checkpointing + ", offload" * cfg.offload
    lines = [f"{cfg.algorithm}, {parameters(shape) / 1e9:.2f} B parameters, {what}, {passes}", ""]
    lines.append(f"{'GB per rank':<22}" + "".join(f"{name:>10}" for name in columns))
    rows = {kind: [column.get(kind) for column in columns.values()] for c in columns.values() for kind in c}
    rows["sum"] = [sum(column.values()) for column in columns.values()]
    rows["may take"] = [usable(cfg)] * len(columns)
    for kind, sizes in rows.items():
        cells = ("-" if size is None else f"{size / 1e9:.2f}" for size in sizes)
        lines.append(f"{kind:<22}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append("")
    if cfg.offload:
        lines.append(f"host        {host(shape, cfg) / 1e9:.1f} GB per rank")
    if cfg.algorithm != "sft":
        token, each = cache_per_token(shape, cfg.bytes_per_value) / 1024, slot(shape, cfg) / 1e9
        lines.append(f"slots       {slots} at once, for the {cfg.episodes} episodes of a rank")
        lines.append(f"cache       {token:g} KiB a token, {each:.2f} GB a slot of {cfg.longest} tokens")
    verdict = "it fits"
    if not fits(shape, cfg):
        over = {name: (sum(column.values()) - usable(cfg)) / 1e9 for name, column in columns.items()}
        lacks = " and ".join(f"the {name} lacks {gb:.1f} GB" for name, gb in over.items() if gb > 0)
        verdict = f"it does not fit: {lacks}; {remedy(shape, cfg)}"
    return "\n".join([*lines, f"bottleneck  {bottleneck(shape, cfg)}", f"verdict     {verdict}"])


def paged_slots(shape: models.Config, cfg: Config) -> int:
    """The number of slots that would fit if a slot took pages of PAGE tokens as it grows: on average its
    prompt, half of the longest response and half a page. Today it takes its longest from the start."""
    half = replace(cfg, response=math.ceil((cfg.response + PAGE) / 2))
    room = usable(cfg) - sum(rollout(shape, cfg, 0).values())
    return min(cfg.episodes, max(0, math.floor(room / slot(shape, half))))


def published(cfg: Config) -> str:
    """The papers' runs as a table: slots per rank, with pages too; a step's least time; what would be needed
    where one does not fit. Each run has --checkpointing; --offload where nothing else makes it fit."""
    lines = [f"{'':12}{'slots':>6}{'paged':>7}{'s a step':>10}{'steps':>7}{'days':>6}  with"]
    for name, (size, options, steps) in PUBLISHED.items():
        shape = SHAPES[size]
        run = replace(cfg, **options, checkpointing=True)
        run = next((r for r in (run, replace(run, offload=True)) if fits(shape, r)), run)
        if not fits(shape, run):
            lines.append(f"{name:12}{'does not fit':>23}  {remedy(shape, run)}")
            continue
        slots = fitting_slots(shape, run)
        seconds = sum(rollout_seconds(shape, run, slots).values()) + update_seconds(shape, run)
        row = f"{name:12}{slots:>6}{paged_slots(shape, run):>7}{seconds:>10,.0f}{steps:>7}"
        lines.append(f"{row}{seconds * steps / 86400:>6.1f}  --checkpointing{' --offload' * run.offload}")
    return "\n".join([*lines, f"at the limits of {LIMITS[cfg.device][2]}, every response at its full length"])


def read_shape(name: str) -> models.Config:
    """The shape of that name, or the one in a checkpoint folder's config.json. Raises UsageError."""
    known = {"tiny": models.TINY, **SHAPES}
    if name in known:
        return known[name]
    if not Path(name).is_dir():
        raise UsageError(f"--model {name}: no such folder; expected one, or {', '.join(known)}")
    try:
        return models.read_config(name)
    except ValueError as error:
        raise UsageError(f"--model {name}: {error}") from None


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(Config, __doc__, argv, first=("model", "gpus", "memory_gb"))
    for name, known in (("algorithm", ALGORITHMS), ("device", LIMITS)):
        if (value := getattr(cfg, name)) not in known:
            raise UsageError(f"--{name} {value}{config.nearest(value, known)}; expected {', '.join(known)}")
    if cfg.device == "cpu" and (cfg.gpus > 1 or cfg.offload or cfg.published):
        raise UsageError(
            "--device cpu is planned as one rank; leave out --gpus above 1, --offload and --published"
        )
    print(published(cfg) if cfg.published else report(read_shape(cfg.model), cfg))


if __name__ == "__main__":
    config.run(main, "analysis.plan")
