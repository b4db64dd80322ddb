"""How fast tokens are generated, against transformers' generate and against the machine's limit.

    python bench/decode.py                     # all parts, CPU; about half an hour on one core
    python bench/decode.py --parts small       # generate() of the 4M shape, B 8 / 32 / 128
    python bench/decode.py --device cuda --parts gpu

small    end to end: prefill and decoding of random prompts. transformers with its dynamic and its static
         cache; the better one counts.
large    decoding alone: the time of the steps after the second token. All rows share one prompt, which both
         sides get ready-made (ours copies it, transformers is handed filled caches).
prefill  one new token for 16 rollouts of one prompt, end to end, as rollouts of a group begin.
gpu      large for bf16 at B 1 / 64 / 256, shapes 0.5B, 1.5B and 7B, with peak memory, and with CUDA graphs
         against without; transformers with its dynamic cache, as the static one is compiled for minutes.

Both sides have the same weights, dtype, prompts and number of new tokens, and no token ends a row; in fp32
their greedy tokens are compared. Both sample at --temperature (0 is greedy); ours returns log-probs as well.

The limit, measured in the same rounds: a step must read all weights once (of a tied embedding once, for the
head) and the keys and values stored so far, at the bandwidth with which this machine copies or adds up a
large array; and it must multiply every row with every weight, at the rate of the fastest matrix product of
that dtype. The larger of the two times is the least that a step can take; the share is that over the time it
took.
"""

import gc
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from shapes import SHAPES, cache_bytes, prompts, random_model, twin, weight_elements  # noqa: E402
from timing import (  # noqa: E402
    DTYPES,
    Row,
    matmul_peak,
    median,
    options,
    parse,
    per_second,
    read_bandwidth,
    report,
    speed_row,
    take_turns,
    timed,
)

from sample import Sampler, generate  # noqa: E402

ASKED = {
    ("small", "fp32"): {8: ">= 2.2x", 32: ">= 2.0x", 128: ">= 1.9x"},
    ("small", "bf16"): {8: ">= 2.5x", 32: ">= 2.2x", 128: ">= 1.7x"},
    ("large", "fp32"): {8: ">= 3.0x", 32: ">= 2.8x, >= 70 %"},
    ("large", "bf16"): {1: ">= 65 %", 8: ">= 2.3x", 32: ">= 2.0x, >= 50 %", 128: ">= 75 %"},
}
CACHES = ("dynamic", "static")  # of transformers


# -- both sides ------------------------------------------------------------------------------------


def generate_ours(model, inputs, new: int, temperature: float, seed: int = 0) -> list[list[int]]:
    found = generate(model, inputs, max_new_tokens=new, temperature=temperature, seed=seed)
    return [sample.tokens for sample in found]


def sampling(temperature: float) -> dict:
    """The options with which transformers draws from the whole distribution, or takes the most likely."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def generate_theirs(other, inputs, new: int, temperature: float, cache: str) -> list[list[int]]:
    tokens = torch.tensor(inputs, device=other.device)
    known = {"attention_mask": torch.ones_like(tokens), "cache_implementation": cache}
    found = other.generate(tokens, **known, max_new_tokens=new, **sampling(temperature))
    return found[:, tokens.shape[1] :].tolist()


def decode_ours(model, prompt, batch: int, new: int, temperature: float, graphs: bool = True) -> float:
    """Seconds of the new - 2 steps after the second, in which a CUDA graph is captured."""
    sampler = Sampler(model, batch, len(prompt) + new, temperature=temperature)
    if not graphs:
        sampler.graphs = None
    for i in range(batch):
        sampler.add(prompt, key=(0, i))
    sampler.step()
    sampler.step()
    return timed(lambda: [sampler.step() for _ in range(new - 2)])


def filled_cache(other, prompt, batch: int, new: int, kind: str):
    """What transformers would hold after all of the prompt but its last token, for `batch` equal rows."""
    import transformers

    tokens = torch.tensor([prompt[:-1]], device=other.device)
    with torch.no_grad():
        one = other(tokens, use_cache=True, logits_to_keep=1).past_key_values
    if kind == "dynamic":
        many = transformers.DynamicCache(config=other.config)
    else:
        many = transformers.StaticCache(config=other.config, max_cache_len=len(prompt) + new)
    for i, layer in enumerate(one.layers):
        many.update(*(x.expand(batch, -1, -1, -1).contiguous() for x in (layer.keys, layer.values)), i)
    return many


def decode_theirs(other, prompt, batch: int, new: int, temperature: float, kind: str) -> float:
    """Seconds from the second new token to the last: a stopping criterion, which generate() calls after
    every token, notes the time and never stops."""
    stamps = []

    def note(tokens, scores, **_):
        if tokens.is_cuda:
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    tokens = torch.tensor([prompt] * batch, device=other.device)
    cache = filled_cache(other, prompt, batch, new, kind)
    known = {"attention_mask": torch.ones_like(tokens), "past_key_values": cache}
    other.generate(tokens, **known, max_new_tokens=new, stopping_criteria=[note], **sampling(temperature))
    assert len(stamps) == new, f"transformers made {len(stamps)} tokens, not {new}"
    return stamps[-1] - stamps[1]


def agreement(model, other, inputs, new: int) -> str:
    """How many greedy tokens are the same on both sides; after a near tie, the rest of a row differs."""
    ours = generate_ours(model, inputs, new, 0.0)
    theirs = generate_theirs(other, inputs, new, 0.0, "dynamic")
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    return f"greedy tokens: {same} of {new * len(inputs)} the same"


# -- parts -----------------------------------------------------------------------------------------


def small(chosen) -> list[Row]:
    rows = []
    for name in chosen.dtypes:
        model = random_model(chosen.small_shape, DTYPES[name], chosen.device, chosen.seed)
        other = twin(model) if chosen.against == "transformers" else None
        for batch in chosen.batches:
            inputs = prompts(batch, chosen.prompt, model.config.vocab_size, chosen.seed)
            work = (inputs, chosen.new, chosen.temperature)
            turns = {"ours": lambda w=work, m=model: timed(generate_ours, m, *w)}
            for cache in CACHES if other else ():
                turns[cache] = lambda w=work, o=other, c=cache: timed(generate_theirs, o, *w, c)
            note = agreement(model, other, inputs, chosen.new) if other and name == "fp32" else ""
            title = f"generate {chosen.small_shape}, {chosen.prompt} + {chosen.new} tokens, B {batch}, {name}"
            asked = ASKED["small", name].get(batch, "")
            count = batch * chosen.new
            rows.append(speed_row(title, count, take_turns(turns, chosen), [*CACHES], asked=asked, note=note))
    return rows


def least_seconds(model, batch: int, length: float, bandwidth: float, peak: float) -> float:
    """The least time of one step of `batch` rows that hold `length` tokens: see the head of this file."""
    c, weight = model.config, model.model.embed_tokens.weight
    weights = weight_elements(model)
    read = weights * weight.element_size() + cache_bytes(model, round(batch * length), weight)
    attention = 4 * batch * length * c.num_hidden_layers * c.hidden_size
    return max(read / bandwidth, (2 * weights * batch + attention) / peak)


def decode_row(model, other, name: str, shape: str, batch: int, chosen, caches=CACHES) -> Row:
    """One line of `large` or `gpu`, the latter with and without CUDA graphs."""
    prompt = prompts(1, chosen.prompt, model.config.vocab_size, chosen.seed)[0]
    work = (prompt, batch, chosen.large_new, chosen.temperature)
    dtype, device = DTYPES[name], chosen.device
    turns = {
        "ours": lambda: decode_ours(model, *work),
        "bandwidth": lambda: read_bandwidth(device),
        "peak": lambda: matmul_peak(dtype, device, model.config.hidden_size),
    }
    if device == "cuda":
        turns["eager"] = lambda: decode_ours(model, *work, graphs=False)
    for kind in caches if other else ():
        turns[kind] = lambda kind=kind: decode_theirs(other, *work, kind)
    steps = chosen.large_new - 2
    found = take_turns(turns, chosen)
    row = speed_row(
        f"decode {shape}, {len(prompt)} stored, B {batch}, {name}", batch * steps, found, [*caches]
    )
    bandwidth, peak = median(found["bandwidth"]), median(found["peak"])
    least = least_seconds(model, batch, len(prompt) + chosen.large_new / 2, bandwidth, peak)
    row.share = least * steps / median(found["ours"])
    row.note = f"limit {per_second(batch, least)}: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:,.0f} GFLOP/s"
    if device == "cuda":
        row.note += f"; CUDA graph {median(found['eager']) / median(found['ours']):.2f}x eager"
    return row


def large(chosen) -> list[Row]:
    rows = []
    for name in chosen.dtypes:
        model = random_model(chosen.large_shape, DTYPES[name], chosen.device, chosen.seed)
        other = twin(model) if chosen.against == "transformers" else None
        for batch in chosen.large_batches:
            rows.append(decode_row(model, other, name, chosen.large_shape, batch, chosen))
            rows[-1].asked = ASKED["large", name].get(batch, "")
        if other and name == "fp32":
            inputs = prompts(2, chosen.prompt, model.config.vocab_size, chosen.seed)
            rows[-1].note += "; " + agreement(model, other, inputs, chosen.large_new)
        del model, other
    return rows


def prefill(chosen) -> list[Row]:
    model = random_model(chosen.large_shape, torch.float32, chosen.device, chosen.seed)
    other = twin(model) if chosen.against == "transformers" else None
    one = prompts(1, chosen.prompt, model.config.vocab_size, chosen.seed)
    inputs = one * chosen.group
    turns = {"ours": lambda: timed(generate_ours, model, inputs, 1, chosen.temperature)}
    if other:
        turns["dynamic"] = lambda: timed(generate_theirs, other, inputs, 1, chosen.temperature, "dynamic")
    note = agreement(model, other, inputs, 1) if other else ""
    title = f"prefill {chosen.large_shape}, {chosen.group} rollouts of one prompt of {chosen.prompt}, fp32"
    count = chosen.group * chosen.prompt
    return [speed_row(title, count, take_turns(turns, chosen), ["dynamic"], asked=">= 20x", note=note)]


def gpu(chosen) -> list[Row]:
    """Random weights in bf16; peak memory is that of ours alone."""
    titles = {s: [f"GPU decode {s}, B {b}, bf16" for b in chosen.gpu_batches] for s in chosen.gpu_shapes}
    if chosen.device != "cuda" or not torch.cuda.is_available():
        return [Row(title) for shape in titles for title in titles[shape]]
    rows = []
    for shape in chosen.gpu_shapes:
        model = random_model(shape, torch.bfloat16, "cuda", chosen.seed)
        other = twin(model) if chosen.against == "transformers" else None
        for title, batch in zip(titles[shape], chosen.gpu_batches, strict=True):
            prompt = prompts(1, chosen.prompt, model.config.vocab_size, chosen.seed)[0]
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            decode_ours(model, prompt, batch, chosen.large_new, chosen.temperature)
            peak = torch.cuda.max_memory_allocated() / 2**30
            row = decode_row(model, other, "bf16", shape, batch, chosen, caches=("dynamic",))
            row.work, row.note = f"{title}, {len(prompt)} stored", f"{row.note}; peak {peak:.1f} GiB"
            rows.append(row)
        del model, other
        gc.collect()  # transformers' model holds itself
        torch.cuda.empty_cache()
    return rows


PARTS = {"small": small, "large": large, "prefill": prefill, "gpu": gpu}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("transformers",))
    names = dict(type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("--parts", default=list(PARTS), **names, help=", ".join(PARTS))
    parser.add_argument("--dtypes", default=list(DTYPES), **names, help="fp32, bf16")
    parser.add_argument("--small-shape", default="4M", choices=SHAPES)
    parser.add_argument("--batches", default=[8, 32, 128], type=numbers, metavar="B,B", help="of small")
    parser.add_argument("--prompt", default=64, type=int, help="tokens")
    parser.add_argument("--new", default=64, type=int, help="tokens, of small")
    parser.add_argument("--large-shape", default="0.5B", choices=SHAPES)
    parser.add_argument("--large-batches", default=[1, 8, 32, 128], type=numbers, metavar="B,B")
    parser.add_argument("--large-new", default=16, type=int, help="tokens, of large and gpu")
    parser.add_argument("--group", default=16, type=int, help="rollouts of the prompt, of prefill")
    parser.add_argument("--gpu-shapes", default=["0.5B", "1.5B", "7B"], **names)
    parser.add_argument("--gpu-batches", default=[1, 64, 256], type=numbers, metavar="B,B")
    parser.add_argument("--temperature", default=1.0, type=float)
    chosen = parse(parser, argv)
    for given, known in ((chosen.parts, PARTS), (chosen.dtypes, DTYPES), (chosen.gpu_shapes, SHAPES)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    if chosen.large_new < 3:
        parser.error("--large-new: the first two tokens are not timed; expected at least 3")
    rows = []
    for part in chosen.parts:
        rows += PARTS[part](chosen)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
