"""Ragged rollouts with one program each, against what transformers offers, and what waiting costs.

    python bench/rollout.py

ragged  128 rollouts of 20 to 400 tokens, in groups of 8 that share a prompt, one program each at a random
        place, whose result is there at once. transformers twice: `static`, generate() of all rows until the
        longest has its program, then generate() of all rows with their results, each row stopping at its own
        length; and `continuous`, its continuous batching, where a row's second part is asked for as soon as
        its first has come. Tokens per second counts the tokens that the model wrote.
free    the same rollouts of ours with a tokenizer that makes no token of a result: what appending costs.
sleep   256 rollouts whose programs sleep, on Sandbox(workers=64), against the same with no sleep. The row's
        ratio is of whole runs, waiting included; its note has that of the time spent in the sampler alone.

The model has random weights, so lengths and programs are scripted (scripted.py): all tokens are sampled, some
are replaced. Same weights, prompts, lengths, results and dtype on all sides; no token ends a row before its
length, and both sides draw at temperature 1. Ours also returns log-probs and keeps the episodes.
"""

import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from scripted import (  # noqa: E402
    PROTOCOL,
    Instant,
    Scripted,
    Turn,
    call,
    plain_tokens,
    questions,
    small_tokenizer,
)
from shapes import SHAPES, ragged_lengths, random_model, twin  # noqa: E402
from timing import DTYPES, Row, median, options, parse, per_second, report, speed_row, take_turns  # noqa: E402

from rollout import Environment, Limits, Request, rollout  # noqa: E402
from sample import Sampler  # noqa: E402
from sandbox import Sandbox  # noqa: E402

ASKED = "static >= 15x, continuous >= 5x"
RESULT = "1234567890" * 2  # 24 tokens with what the protocol puts around it


class NoResults:
    """A tokenizer to which the interpreter's text is nothing: results take part in no forward pass."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def encode(self, text: str) -> list[int]:
        return [] if text.startswith(PROTOCOL.before) else self.tokenizer.encode(text)


class Workload:
    """`count` rollouts with their scripts, and the sampler that plays them. `program` ends the first turn."""

    def __init__(self, model, count: int, least: int, most: int, chosen, program: str = "print(1)"):
        self.tokenizer, self.model = small_tokenizer(min(1024, model.config.vocab_size)), model
        block = call(self.tokenizer, program)
        rng = random.Random(f"rollouts {chosen.seed}")
        lengths = ragged_lengths(count, max(least, len(block) + 2), most, chosen.seed)
        self.parts = [(first := rng.randint(len(block), n - 1), n - first) for n in lengths]  # before, after
        asked = questions(-(-count // chosen.group), chosen.question)
        places = [i // chosen.group for i in range(count)]
        self.requests = [Request(asked[p], p, (chosen.seed, i)) for i, p in enumerate(places)]
        stop = (self.tokenizer.stop_ids[0],)
        self.scripts = {
            request.key: [Turn(first, block), Turn(second, stop)]
            for request, (first, second) in zip(self.requests, self.parts, strict=True)
        }
        self.prompts = [self.tokenizer.chat(*PROTOCOL.opening(r.problem.question)) for r in self.requests]
        self.result = self.tokenizer.encode(PROTOCOL.wrap(RESULT))
        self.limits = Limits(max_calls=1, max_tokens=most + len(self.result) + 2, timeout=60.0)
        room = max(map(len, self.prompts)) + self.limits.max_tokens
        self.sampler = Sampler(model, min(chosen.slots or count, count), room)
        self.plain = plain_tokens(self.tokenizer, model.config.vocab_size)

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.parts))

    def play(self, sandbox, tokenizer=None) -> tuple[float, float]:
        """Seconds of a whole run, and those of them spent in the sampler's steps."""
        scripted = Scripted(self.sampler, self.scripts, self.plain)
        start = time.perf_counter()
        episodes = rollout(
            scripted, Environment(tokenizer or self.tokenizer, PROTOCOL, sandbox, self.limits), self.requests
        )
        seconds = time.perf_counter() - start
        written = sum(len(e.policy_tokens) for e in episodes)
        called = {len(e.calls) for e in episodes}
        if written != self.tokens or called != {1}:
            raise RuntimeError(f"{written} tokens and {called} calls; scripted were {self.tokens} and 1 each")
        return seconds, scripted.seconds


# -- transformers ------------------------------------------------------------------------------------


DRAW = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def generate_rows(other, inputs: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """generate() on left-padded rows, each of which is done after its own number of tokens."""
    width = max(map(len, inputs))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in inputs], device=other.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in inputs], device=other.device)
    ends = torch.tensor(lengths, device=other.device) + width

    def done(tokens, scores, **_):
        return tokens.shape[1] >= ends

    known = {"attention_mask": mask, "stopping_criteria": [done]}
    found = other.generate(tokens, **known, max_new_tokens=max(lengths), **DRAW)[:, width:]
    return [row[:n] for row, n in zip(found.tolist(), lengths, strict=True)]


def play_static(other, work: Workload) -> float:
    """Two rounds for all rows; the second one begins with all that a row holds so far."""
    start = time.perf_counter()
    firsts, seconds = zip(*work.parts, strict=True)
    written = generate_rows(other, work.prompts, list(firsts))
    inputs = [p + w + work.result for p, w in zip(work.prompts, written, strict=True)]
    ends = generate_rows(other, inputs, list(seconds))
    made = sum(map(len, written)) + sum(map(len, ends))
    assert made == work.tokens, f"transformers made {made} tokens, not {work.tokens}"
    return time.perf_counter() - start


def play_continuous(other, work: Workload) -> float:
    """Continuous batching; starting and ending its thread are not counted."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    longest = max(map(sum, work.parts)) + len(work.result)
    config = GenerationConfig(**DRAW, max_new_tokens=longest, eos_token_id=-1, pad_token_id=0)
    pages = -(-(longest + max(map(len, work.prompts))) // 256)
    # enough for all rows at once; left to itself it takes most of the machine's memory, and long to clear it
    cache = ContinuousBatchingConfig(page_size=256, num_blocks=len(work.parts) * pages + 8)
    made = 0
    options = {"generation_config": config, "continuous_batching_config": cache}
    with other.continuous_batching_context_manager(**options, block=True, timeout=5) as manager:
        start = time.perf_counter()
        for i, (prompt, (first, _)) in enumerate(zip(work.prompts, work.parts, strict=True)):
            manager.add_request(prompt, request_id=f"{i} first", max_new_tokens=first)
        left = len(work.parts)
        while left:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("the continuous batching of transformers stopped by itself")
            if result is None or not result.is_finished():
                continue
            made += len(result.generated_tokens)
            number, part = result.request_id.split()
            i = int(number)
            if part == "second":
                left -= 1
                continue
            inputs = work.prompts[i] + list(result.generated_tokens) + work.result
            manager.add_request(inputs, request_id=f"{i} second", max_new_tokens=work.parts[i][1])
        seconds = time.perf_counter() - start
    assert made == work.tokens, f"continuous batching made {made} tokens, not {work.tokens}"
    return seconds


# -- parts -----------------------------------------------------------------------------------------


def ragged(chosen) -> list[Row]:
    model = random_model(chosen.shape, DTYPES[chosen.dtype], chosen.device, chosen.seed)
    work = Workload(model, chosen.rollouts, chosen.least, chosen.most, chosen)
    other = twin(model) if chosen.against == "transformers" else None
    turns = {
        "ours": lambda: work.play(Instant(RESULT))[0],
        "free": lambda: work.play(Instant(RESULT), NoResults(work.tokenizer))[0],
    }
    if other:
        turns |= {"static": lambda: play_static(other, work)}
        turns |= {"continuous": lambda: play_continuous(other, work)}
    found = take_turns(turns, chosen)
    mean = work.tokens / len(work.parts)
    title = (
        f"{len(work.parts)} rollouts, {chosen.least}-{chosen.most} tokens (mean {mean:.0f}), one call each"
    )
    rows = []
    for peer, asked in (("static", ">= 15x"), ("continuous", ">= 5x")):
        if other:
            rows.append(speed_row(title, work.tokens, found, [peer], asked=asked))
    rows = rows or [speed_row(title, work.tokens, found, [], asked=ASKED)]
    free = speed_row("results appended, against as if free", work.tokens, found, ["free"], asked=">= 95 %")
    free.share, free.ratio = free.ratio, None
    free.note = f"{len(work.result)} tokens a result"
    return [*rows, free]


def sleep(chosen) -> list[Row]:
    """Both programs have the same text but for one digit, so that the rollouts are the same."""
    model = random_model(chosen.shape, DTYPES[chosen.dtype], chosen.device, chosen.seed)
    programs = {"ours": f"import time\ntime.sleep({chosen.seconds})\nprint(1)"}
    programs["awake"] = f"import time\ntime.sleep({0.0})\nprint(1)"
    works = {
        name: Workload(model, chosen.sleepers, chosen.sleep_least, chosen.most, chosen, program)
        for name, program in programs.items()
    }
    inside: dict[str, list[float]] = {name: [] for name in works}

    def play(name: str) -> float:
        whole, stepping = works[name].play(sandbox)
        inside[name].append(stepping)
        return whole

    with Sandbox(workers=chosen.workers, timeout=60.0, quiet=True) as sandbox:
        found = take_turns({name: lambda n=name: play(n) for name in works}, chosen)
    tokens = works["ours"].tokens
    title = f"{chosen.sleepers} rollouts, programs sleep {chosen.seconds} s, {chosen.workers} workers"
    row = speed_row(title, tokens, found, ["awake"], asked=">= 90 %")
    row.share, row.ratio = row.ratio, None
    stepping = {name: median(values[chosen.warmup :]) for name, values in inside.items()}
    row.note = f"in the sampler alone {stepping['awake'] / stepping['ours']:.0%}"
    return [row]


def gpu(chosen) -> list[Row]:
    """The ragged rollouts on a GPU, a 0.5B shape in bf16, with the peak memory of ours."""
    title = f"GPU rollouts with a call, {chosen.gpu_shape}, bf16"
    if chosen.device != "cuda" or not torch.cuda.is_available():
        return [Row(title)]
    model = random_model(chosen.gpu_shape, torch.bfloat16, "cuda", chosen.seed)
    torch.cuda.reset_peak_memory_stats()
    work = Workload(model, chosen.rollouts, chosen.least, chosen.most, chosen)
    found = take_turns({"ours": lambda: work.play(Instant(RESULT))[0]}, chosen)
    peak = torch.cuda.max_memory_allocated() / 2**30
    rate = per_second(work.tokens, median(found["ours"]))
    return [Row(title, rate, turns=found, note=f"peak {peak:.1f} GiB")]


PARTS = {"ragged": ragged, "sleep": sleep, "gpu": gpu}


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("transformers",))
    parts = dict(type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("--parts", default=list(PARTS), **parts, help=", ".join(PARTS))
    parser.add_argument("--shape", default="4M", choices=SHAPES)
    parser.add_argument("--gpu-shape", default="0.5B", choices=SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--rollouts", default=128, type=int)
    parser.add_argument("--group", default=8, type=int, help="rollouts of one prompt")
    parser.add_argument("--least", default=20, type=int, help="tokens of the shortest rollout")
    parser.add_argument("--most", default=400, type=int, help="tokens of the longest")
    parser.add_argument("--question", default=50, type=int, help="tokens of it; the prompt has 14 more")
    parser.add_argument("--slots", default=0, type=int, help="of our sampler; 0: one per rollout")
    parser.add_argument("--sleepers", default=256, type=int, help="rollouts of the part sleep")
    parser.add_argument("--sleep-least", default=40, type=int, help="tokens of its shortest")
    parser.add_argument("--seconds", default=1.0, type=float, help="that its programs sleep")
    parser.add_argument("--workers", default=64, type=int, help="of its sandbox")
    chosen = parse(parser, argv)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    rows = []
    for part in chosen.parts:
        rows += PARTS[part](chosen)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
