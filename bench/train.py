"""Forward and backward pass on sequences of very different lengths, against transformers.

    python bench/train.py

64 sequences of 20 to 400 tokens, 4M parameters, float32: gradients of the mean negative log-likelihood of all
their tokens, all the way through. Ours as in the training scripts: micro_batches, token_logprobs,
weighted_sum. transformers in two ways, its own loss with the whole batch's token count: `padded`, the
sequences as they come, as many at a time as fit into --micro-tokens when padded to their longest; `sorted`,
the same after sorting by length. All sides must find the same gradient; the largest relative difference of a
parameter's gradient is printed. Tokens per second counts real tokens, not padding.

The limit: 6 operations per weight and token (forward, and two products backward), and attention's 12 per
layer, width and pair of positions, halved by causality, at the rate of the fastest matrix product of that
dtype, which is measured in the same rounds.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from shapes import SHAPES, prompts, ragged_lengths, random_model, twin, weight_elements  # noqa: E402
from timing import (  # noqa: E402
    DTYPES,
    Row,
    matmul_peak,
    median,
    options,
    parse,
    report,
    speed_row,
    take_turns,
    timed,
)

from loss import token_logprobs, token_weights, weighted_sum  # noqa: E402
from training.batches import micro_batches  # noqa: E402

PEERS = ("padded", "sorted")


def padded_batch(sequences: list[list[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T), zeros on the right, and lengths (B,)."""
    lengths = torch.tensor([len(s) for s in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return tokens.to(device), lengths


def gradients_ours(model, sequences: list[list[int]], chosen) -> None:
    """As sft.py, grpo.py and ppo.py do it: weights of the whole batch, micro-batches that only slice."""
    tokens, lengths = padded_batch(sequences, chosen.device)
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
    mask[:, 0] = False
    weights = token_weights(mask)
    for rows, width in micro_batches(lengths, chosen.micro_tokens):
        used = mask[rows, :width]
        logprobs = token_logprobs(model, tokens[rows, :width], lengths=lengths[rows], mask=used)
        weighted_sum(-logprobs, weights[rows, :width]).backward()


def gradients_theirs(other, sequences: list[list[int]], chosen, by_length: bool) -> None:
    order = sorted(sequences, key=len, reverse=True) if by_length else list(sequences)
    count = sum(len(s) - 1 for s in sequences)
    while order:
        rows = 1
        while rows < len(order) and (rows + 1) * max(map(len, order[: rows + 1])) <= chosen.micro_tokens:
            rows += 1
        tokens, lengths = padded_batch(order[:rows], chosen.device)
        order = order[rows:]
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        labels = tokens.masked_fill(~mask, -100)
        known = {"attention_mask": mask.long(), "use_cache": False, "num_items_in_batch": count}
        other(tokens, labels=labels, **known).loss.backward()


def gradients(model, run) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    run()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def disagreement(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, relative to the largest entry of the same parameter's."""
    assert set(ours) == set(theirs), "the two models have different parameters"
    return max(
        ((ours[n] - theirs[n]).abs().max() / ours[n].abs().max().clamp(min=1e-30)).item() for n in ours
    )


def operations(model, sequences: list[list[int]]) -> float:
    """Floating-point operations of a pass: see the head of this file."""
    c = model.config
    attention = sum(6 * len(s) ** 2 for s in sequences) * c.num_hidden_layers * c.hidden_size
    return 6 * weight_elements(model) * sum(map(len, sequences)) + attention


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("transformers",))
    parser.add_argument("--shape", default="4M", choices=SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--sequences", default=64, type=int)
    parser.add_argument("--least", default=20, type=int, help="tokens of the shortest")
    parser.add_argument("--most", default=400, type=int, help="tokens of the longest")
    parser.add_argument("--micro-tokens", default=1024, type=int, help="of a pass; theirs: with padding")
    chosen = parse(parser, argv)
    model = random_model(chosen.shape, DTYPES[chosen.dtype], chosen.device, chosen.seed).train()
    lengths = ragged_lengths(chosen.sequences, chosen.least, chosen.most, chosen.seed)
    longest = prompts(chosen.sequences, chosen.most, model.config.vocab_size, chosen.seed)
    sequences = [row[:n] for row, n in zip(longest, lengths, strict=True)]

    def run_ours():
        gradients_ours(model, sequences, chosen)

    def measured(m, run) -> float:
        m.zero_grad(set_to_none=True)
        return timed(run)

    turns = {"ours": lambda: measured(model, run_ours)}
    turns["peak"] = lambda: matmul_peak(DTYPES[chosen.dtype], chosen.device)
    note = ""
    if chosen.against == "transformers":
        other = twin(model).train()
        runs = {
            name: lambda by=name == "sorted": gradients_theirs(other, sequences, chosen, by) for name in PEERS
        }
        turns |= {name: lambda r=run: measured(other, r) for name, run in runs.items()}
        gap = disagreement(gradients(model, run_ours), gradients(other, runs["padded"]))
        note = f"gradients differ by {gap:.1e}"
    found = take_turns(turns, chosen)
    real, padded = sum(lengths), chosen.sequences * max(lengths)
    title = (
        f"forward + backward, {chosen.shape}, {len(lengths)} sequences, {chosen.least}-{chosen.most} tokens"
    )
    title += f" ({real / padded:.0%} real when padded), {chosen.dtype}"
    sets = [("padded", ">= 3.5x"), ("sorted", ">= 1.8x")] if chosen.against != "none" else [("", "")]
    rows = []
    for peer, asked in sets:
        row = speed_row(title, real, found, [peer], asked=asked, note=note)
        row.share = operations(model, sequences) / median(found["peak"]) / median(found["ours"])
        rows.append(row)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
