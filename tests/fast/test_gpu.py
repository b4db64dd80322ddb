"""What only a GPU can show: flash attention against softmax, CUDA graphs against no graphs, sampler against
trainer, training against float32 on the CPU, and the three scripts.

    python -m pytest tests/fast/test_gpu.py        on a machine with a CUDA GPU from Ampere on

The logic of the CUDA engine, without its kernels, is tested on CPUs in test_sample.py and test_model.py.
"""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flash import Eager, plain_flash_attention

from fast import cuda
from fast.flash import Ragged, flash_attention
from fast.packing import Packing
from loss import token_logprobs
from model import Config, Qwen
from sample import Sampler, generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    vocab_size=509,
    hidden_size=256,
    intermediate_size=352,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    rope_theta=10_000.0,
)


def random_model(dtype: torch.dtype, device: str = "cuda") -> Qwen:
    model = Qwen(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.2 if p.dim() < 2 else 1.0 / p.shape[1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale + ("norm" in name))
    return model.to(device=device, dtype=dtype).eval()


def some_tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(CONFIG.vocab_size) for _ in range(n)]


def close(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Within `share` of the size of what is expected, as a whole."""
    assert found.isfinite().all()
    assert (found.float() - expected.float()).norm() <= share * expected.float().norm()


# -- the kernel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [[1, 1, 1, 1], [3, 1, 17, 200]])
@pytest.mark.parametrize("heads, kv_heads, size", [(14, 2, 64), (8, 8, 32), (28, 4, 128)])
def test_flash_attention_reads_rows_of_a_cache_in_any_order(queries, heads, kv_heads, size):
    """Also beyond what the longest row needs: the cache holds NaN there."""
    torch.manual_seed(0)
    used, rows, slots, width = [300, 1, 40, 256], [2, 5, 0, 3], 6, 320
    used = [max(u, n) for u, n in zip(used, queries, strict=True)]
    cache = torch.full((slots, width, 2 * kv_heads, size), float("nan"), device="cuda", dtype=torch.bfloat16)
    for row, n in zip(rows, used, strict=True):
        cache[row, :n] = torch.randn(n, 2 * kv_heads, size)
    q = torch.randn(sum(queries), heads + 3, size, device="cuda").bfloat16()[:, :heads]
    begins = torch.tensor([0, *torch.tensor(queries).cumsum(0)], device="cuda", dtype=torch.int32)
    begins_k = torch.tensor([*(row * width for row in rows), 0], device="cuda", dtype=torch.int32)
    used = torch.tensor(used, device="cuda", dtype=torch.int32)
    k, v = cache.flatten(0, 1).split(kv_heads, dim=1)
    rows = Ragged(begins, begins_k, max(queries), width, used)
    found = flash_attention(q, k, v, rows)
    close(found, plain_flash_attention(q.float(), k.float(), v.float(), rows), 5e-3)


def ragged_rows() -> tuple[torch.Tensor, list[int]]:
    """Two groups that share their prompt, and a row alone."""
    rng = random.Random(1)
    prompts = [some_tokens(rng, n) for n in (37, 120, 5)]
    rows = [
        p + some_tokens(rng, n)
        for p, ns in zip(prompts, ((9, 80, 33), (1, 60), (200,)), strict=True)
        for n in ns
    ]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]), [len(row) for row in rows]


@pytest.mark.parametrize("shared", [True, False])
def test_packed_attention_and_its_gradients(shared):
    tokens, lengths = ragged_rows()
    if not shared:
        tokens, lengths = tokens[[0, 3, 5]], [lengths[i] for i in (0, 3, 5)]
    packing = Packing(tokens.cuda(), lengths)
    torch.manual_seed(0)
    sizes = [(1, heads, packing.tokens.shape[1], 64) for heads in (14, 2, 2)]
    exact = [torch.randn(size, device="cuda", requires_grad=True) for size in sizes]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    upstream = torch.randn(sizes[0], device="cuda")
    expected, found = packing.attend(*exact), packing.attend(*half)  # float32: row by row
    close(found, expected, 5e-3)
    (expected * upstream).sum().backward()
    (found * upstream).sum().backward()
    for a, b in zip(half, exact, strict=True):
        close(a.grad, b.grad, 1e-2)


# -- the sampler -------------------------------------------------------------------------------------


def play(sampler: Sampler) -> dict[tuple, tuple[list[int], list[bool], list[float]]]:
    """A busy schedule: groups, rows that park and get results of many lengths, others that leave and enter.
    By key: all tokens of a sequence, which of them were sampled, and their log-probs."""
    rng = random.Random(7)
    prompts = [some_tokens(rng, n) for n in (5, 40, 23)]
    rows, slots, parked, done = {}, {}, set(), {}
    for _ in range(90):
        while sampler.free and len(rows) + len(done) < 24:
            i = len(rows) + len(done)
            prompt = prompts[i // 4 % 3]
            slot = sampler.add(prompt, (0, i))
            slots[slot] = (0, i)
            rows[0, i] = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
        for event in sampler.step():
            tokens, sampled, logprobs = rows[slots[event.slot]]
            tokens.append(event.token)
            sampled.append(True)
            logprobs.append(event.logprob)
        for slot, key in list(slots.items()):
            tokens, sampled, logprobs = rows[key]
            if rng.random() < 0.03 and slot not in parked:
                sampler.park(slot)
                parked.add(slot)
            elif slot in parked and rng.random() < 0.5:
                parked.remove(slot)
                ids = some_tokens(rng, rng.choice([1, 4, 30]))
                tokens += ids
                sampled += [False] * len(ids)
                logprobs += [0.0] * len(ids)
                sampler.extend(slot, ids)
            if len(tokens) > 150:
                sampler.release(slot)
                parked.discard(slot)
                done[key] = rows.pop(slots.pop(slot))
    return done | rows


def compare_with_trainer(model: Qwen, rows: dict) -> float:
    """The largest difference between the sampler's and the trainer's log-probs; both drew from one model."""
    width = max(len(tokens) for tokens, *_ in rows.values())
    pad = [
        (t + [0] * (width - len(t)), s + [False] * (width - len(s)), p + [0.0] * (width - len(p)))
        for t, s, p in rows.values()
    ]
    tokens, mask, stored = (torch.tensor(x, device="cuda") for x in zip(*pad, strict=True))
    with torch.no_grad():
        expected = token_logprobs(model, tokens, mask=mask)
    assert mask.sum() > 300
    return (stored - expected).abs().max().item()


def test_graphs_and_no_graphs_give_the_same_tokens(monkeypatch):
    """Bit by bit, at the same buckets; and without any replay, near them."""
    model = random_model(torch.bfloat16)
    found = []
    for graphs in (cuda.Graphs, Eager):
        monkeypatch.setattr(cuda, "Graphs", graphs)
        sampler = Sampler(model, slots=10, max_len=256)
        assert isinstance(sampler.engine, cuda.Flash) and isinstance(sampler.graphs, graphs)
        found.append(play(sampler))
        assert graphs is Eager or len(sampler.graphs.graphs) > 1
    assert found[0] == found[1]
    assert compare_with_trainer(model, found[0]) < 0.1
    sampler = Sampler(model, slots=10, max_len=256)
    sampler.graphs = None
    assert compare_with_trainer(model, play(sampler)) < 0.1


def test_the_cuda_engine_is_as_exact_as_its_dtype():
    """Against float32 on the CPU with the same weights: no further than the trainer's bfloat16 itself."""
    model = random_model(torch.bfloat16)
    exact = copy.deepcopy(model).float().cpu()
    prompts = [some_tokens(random.Random(i), 20 + i) for i in range(5)]
    samples = generate(model, prompts, max_new_tokens=60)
    rows = [p + s.tokens for p, s in zip(prompts, samples, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        expected = token_logprobs(exact, tokens)
        trainer = token_logprobs(model, tokens.cuda()).cpu()
    gaps = []
    for b, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        there = slice(len(prompt), len(prompt) + len(sample.tokens))
        gaps.append([torch.tensor(sample.logprobs) - expected[b, there], (trainer - expected)[b, there]])
    sampler, trainer = (torch.cat(x).square().mean().sqrt() for x in zip(*gaps, strict=True))
    assert sampler < 1.5 * trainer + 1e-3 and trainer < 0.05


def test_float32_on_the_gpu_gives_the_cpus_greedy_tokens():
    prompts = [some_tokens(random.Random(i), 5 + 7 * i) for i in range(6)]
    options = {"max_new_tokens": 40, "temperature": 0.0, "slots": 4}
    here = generate(random_model(torch.float32, "cpu"), prompts, **options)
    there = generate(random_model(torch.float32), prompts, **options)
    for a, b in zip(here, there, strict=True):
        assert a.tokens == b.tokens
        assert max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) <= 1e-4


def test_graphs_follow_the_optimiser_and_weights_that_move():
    model = random_model(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002, fused=True)
    sampler = Sampler(model, slots=2, max_len=80)
    for turn in range(4):
        slot = sampler.add([1, 2, 3], (turn,))  # the memory of the step before is used again by training
        events = [event for _ in range(60) for event in sampler.step()]
        sampler.release(slot)
        row = torch.tensor([[1, 2, 3, *(e.token for e in events)]], device="cuda")
        gaps = token_logprobs(model, row)[0, 3:] - torch.tensor([e.logprob for e in events], device="cuda")
        assert gaps.abs().max() < 0.1
        optimizer.zero_grad()
        token_logprobs(model, row).sum().backward()
        optimizer.step()
        if turn == 2:
            for p in model.parameters():
                p.data = p.data.clone()


# -- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_float32_on_the_cpu(checkpointing):
    model, exact = random_model(torch.bfloat16), random_model(torch.float32, "cpu")
    with torch.no_grad():
        for a, b in zip(exact.parameters(), model.parameters(), strict=True):
            a.copy_(b)
    model.checkpointing = checkpointing
    tokens, lengths = ragged_rows()
    lengths = torch.tensor(lengths)
    for x, device in ((exact, "cpu"), (model, "cuda")):
        logprobs, entropy = token_logprobs(x, tokens.to(device), lengths=lengths, entropy=True)
        (logprobs.sum() + entropy.sum()).backward()
    for a, b in zip(model.parameters(), exact.parameters(), strict=True):
        close(a.grad.cpu(), b.grad, 0.05)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_nothing_to_train_gives_no_gradient(rows):
    model, tokens = random_model(torch.bfloat16), torch.ones(rows, 30, dtype=torch.long, device="cuda")
    found = token_logprobs(model, tokens, mask=torch.zeros_like(tokens), entropy=True)
    sum(x.sum() for x in found).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("script", ["sft.py", "grpo.py", "ppo.py"])
def test_the_scripts_run(script, tmp_path):
    command = [sys.executable, script, "--model", "tiny", "--tasks", "toy", "--steps", "2", "--seed", "0"]
    command += ["--out", str(tmp_path), "--device", "cuda"]
    if script != "sft.py":
        command += ["--prompts", "4", "--group", "4", "--max-tokens", "100", "--max-prompt", "150"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    if script != "sft.py":
        assert all(step["mismatch_k3"] < 1e-3 for step in steps)
    assert (tmp_path / "final" / "model.safetensors").is_file()
