"""Log-probs over a large vocabulary: forward, backward and memory, against a full float32 log-softmax.

    python bench/head.py

512 positions of width 896, a head of 151,936 tokens in bf16, half of the positions masked out. Ours is
loss.token_logprobs; the other side is what one writes first: logits of all positions, float(), log_softmax,
gather, mask. Both get gradients of the head's weight and of the hidden states (through the last norm; the
model has no layers, its embedding is frozen). Time is taken in one process, in turns. Extra memory is what
the peak of the resident set rises by during one forward and backward pass, gradients included, each side in a
process of its own; the kernel's mark of the peak is set back just before.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from timing import DTYPES, Row, median, options, parse, report, speed_row, take_turns, timed  # noqa: E402

from loss import token_logprobs  # noqa: E402
from model import Config, Qwen  # noqa: E402


def make(chosen) -> tuple[Qwen, torch.Tensor, torch.Tensor]:
    """A model that is little but its head, tokens (B, T) and the mask of those that count."""
    torch.manual_seed(chosen.seed)
    config = Config(chosen.vocabulary, chosen.width, chosen.width, 0, chosen.width // 64, 1)
    model = Qwen(config).to(device=chosen.device, dtype=DTYPES[chosen.dtype])
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.02)
    model.model.embed_tokens.weight.requires_grad_(False)
    rows = chosen.positions // chosen.length
    tokens = torch.randint(chosen.vocabulary, (rows, chosen.length), device=chosen.device)
    mask = torch.rand(tokens.shape, device=chosen.device) < 0.5
    return model, tokens, mask


def ours(model: Qwen, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return token_logprobs(model, tokens, mask=mask)


def full(model: Qwen, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = model.head(model(tokens))[:, :-1]
    chosen = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen, (1, 0)).masked_fill(~mask, 0.0)


SIDES = {"ours": ours, "full": full}


def step(side: str, model: Qwen, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Forward and backward pass of -mean log-prob; the log-probs. Gradients are new each time."""
    model.zero_grad(set_to_none=True)
    logprobs = SIDES[side](model, tokens, mask)
    (-logprobs.sum() / mask.sum()).backward()
    return logprobs.detach()


def peak_rise(side: str, chosen) -> float:
    """Bytes by which one pass raises the peak memory, after a pass over two tokens as warm-up."""
    model, tokens, mask = make(chosen)
    step(side, model, tokens[:1, :2], torch.ones_like(mask[:1, :2]))
    model.zero_grad(set_to_none=True)
    if chosen.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(side, model, tokens, mask)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS, man proc_pid_clear_refs(5)
    before = status("VmRSS")
    step(side, model, tokens, mask)
    return status("VmHWM") - before


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_rise_alone(side: str, chosen) -> float:
    """peak_rise in a process of its own."""
    names = ("threads", "device", "seed", "vocabulary", "width", "positions", "length", "dtype")
    flags = [word for name in names for word in (f"--{name}", str(getattr(chosen, name)))]
    command = [sys.executable, __file__, *flags, "--memory-of", side]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("log-softmax",))
    parser.add_argument("--vocabulary", default=151936, type=int)
    parser.add_argument("--width", default=896, type=int)
    parser.add_argument("--positions", default=512, type=int)
    parser.add_argument("--length", default=128, type=int, help="of a sequence; divides --positions")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # how the process calls itself
    chosen = parse(parser, argv)
    if chosen.memory_of:
        print(peak_rise(chosen.memory_of, chosen))
        return []
    sides = ["ours"] if chosen.against == "none" else list(SIDES)
    made = make(chosen)
    found = take_turns({side: lambda s=side: timed(step, s, *made) for side in sides}, chosen)
    title = f"head of {chosen.vocabulary:,} tokens, {chosen.positions} positions, half masked, {chosen.dtype}"
    count = chosen.positions
    rows = [speed_row(f"{title}: time", count, found, ["full"], what="positions", asked=">= 1.65x")]
    memory = {side: peak_rise_alone(side, chosen) for side in sides}
    row = Row(f"{title}: extra memory", f"{memory['ours'] / 2**20:,.0f} MiB", asked="<= 0.37 of it")
    if "full" in memory:
        row.against = f"full: {memory['full'] / 2**20:,.0f} MiB"
        row.share = memory["ours"] / memory["full"]
        gap = (step("ours", *made) - step("full", *made)).abs().max()
        rows[0].note = f"largest difference of log-probs {gap:.1e}"
        row.note = "share of the other side's, not of a limit"
    rows[0].note += f"; {median(found['ours']):.2f} s" if rows[0].note else ""
    report([*rows, row], chosen)
    return [*rows, row]


if __name__ == "__main__":
    main()
