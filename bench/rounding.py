"""How far bfloat16 rounds the log-probs of sampled tokens: sampler, trainer, and both against float32.

    python bench/rounding.py --model DIR

Answers to training questions are sampled, without programs being run. The trainer then scores the same tokens
with the same weights, in bfloat16 and in float32. A row of the table has two of the three: quantiles of their
difference in nats, the mean k3, and the share of tokens whose ratio of probabilities is outside of PPO's clip
range, 0.8 to 1.28, or above 2, where a cap of the importance weight would act. docs/real.md holds the table.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from loss import kl, token_logprobs  # noqa: E402
from model import load  # noqa: E402
from sample import generate  # noqa: E402
from tasks import RL_START, get, get_protocol, names  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


def asked(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """The prompts of one question each of the first SymBench training tasks."""
    protocol = get_protocol("r1ci")
    tasks = (get(name) for name in names("symbench", "train")[:count])
    return [tokenizer.chat(*protocol.opening(t.problem(RL_START).question, None, None)) for t in tasks]


def spread(a: Tensor, b: Tensor) -> str:
    """A line of the table: of log-probs (N,) of the same tokens in two computations."""
    gap = (a - b).abs()
    quantiles = " / ".join(f"{x:.4f}" for x in gap.quantile(torch.tensor(QUANTILES)).tolist())
    ratio = (a - b).exp()
    clipped, capped = ((ratio < 0.8) | (ratio > 1.28)).float().mean(), (ratio > 2).float().mean()
    k3 = kl(b[None], a[None], torch.ones_like(a[None], dtype=torch.bool)).mean()
    return f"{quantiles} | {k3:.1e} | {clipped:.2%} | {capped:.2%}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a checkpoint folder stored in bfloat16")
    parser.add_argument("--rows", default=24, type=int, help="answers, to one question each")
    parser.add_argument("--new", default=192, type=int, help="tokens of an answer, at most")
    chosen = parser.parse_args(argv)
    tokenizer = Tokenizer.load(chosen.model)
    model = load(chosen.model, dtype=torch.bfloat16)
    prompts = asked(tokenizer, chosen.rows)
    limits = {"max_new_tokens": chosen.new, "stop_ids": tokenizer.stop_ids}
    samples = generate(model, prompts, **limits)
    tokens = torch.zeros(len(prompts), max(map(len, prompts)) + chosen.new, dtype=torch.long)
    mask, sampled = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros(tokens.shape)
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        end = len(prompt) + len(sample.tokens)
        tokens[row, :end] = torch.tensor(prompt + sample.tokens)
        mask[row, len(prompt) : end] = True
        sampled[row, len(prompt) : end] = torch.tensor(sample.logprobs)
    with torch.no_grad():
        found = {"sampler": sampled, "trainer": token_logprobs(model, tokens, mask=mask)}
        model = model.float()
        found["float32"] = token_logprobs(model, tokens, mask=mask)
    print(f"{int(mask.sum())} tokens of {len(prompts)} answers\n")
    head = " / ".join("largest" if q == 1 else f"{q:.1%}" for q in QUANTILES)
    print(f"| | nats at quantiles {head} | k3 | out of the clip | above 2 |\n|---|---|---|---|---|")
    for one, other in (("trainer", "sampler"), ("float32", "sampler"), ("float32", "trainer")):
        print(f"| {one} and {other} | {spread(found[one][mask], found[other][mask])} |")


if __name__ == "__main__":
    main()
