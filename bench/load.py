"""How long loading takes, against transformers: a random checkpoint of the shape of Qwen2.5-0.5B.

    python bench/load.py            # about a minute; 3 GB in a temporary folder

Both loaders map the file, so a load can return before a byte is read: the second column adds reading every
page once. Fresh files are in the page cache, so this compares programs, not disks. The two take turns in one
process; medians. "as bfloat16" converts: there the weights are really read and written.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model  # noqa: E402

SHAPE = model.Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def make_checkpoint(folder: Path, dtype: torch.dtype) -> int:
    """Random weights of SHAPE in `folder`; returns their size in bytes."""
    with torch.device("meta"):
        made = model.Qwen(SHAPE)
    made = made.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, 0.02)
    model.save(made, folder)
    return sum(p.nbytes for p in made.parameters())


def seconds(load, folder: Path, dtype: torch.dtype) -> tuple[float, float]:
    """(load alone, load and reading every page)."""
    start = time.perf_counter()
    loaded = load(folder, dtype=dtype)
    returned = time.perf_counter()
    for p in loaded.parameters():
        p.detach().view(torch.uint8).view(-1)[::4096].sum()
    return returned - start, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="loads of each kind; the medians are shown")
    repeats = parser.parse_args().repeats
    import transformers

    loaders = {"abacus": model.load, "transformers": transformers.AutoModelForCausalLM.from_pretrained}
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, median of {repeats}, seconds")
    print(f"{'stored':>10}{'as':>10}{'':>10}{'abacus':>10}{'transformers':>14}{'ratio':>8}")
    for stored in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            make_checkpoint(folder, stored)
            for dtype in (torch.float32, torch.bfloat16):
                times = {name: [] for name in loaders}
                for i in range(repeats + 1):
                    for name in sorted(loaders, reverse=i % 2):
                        times[name].append(seconds(loaders[name], folder, dtype))
                for column, what in enumerate(("load", "and read")):
                    # the first turn pays for imports and is left out
                    ours, theirs = (statistics.median(t[column] for t in times[n][1:]) for n in loaders)
                    row = [str(d).removeprefix("torch.") for d in (stored, dtype)] + [what]
                    cells = "".join(f"{cell:>10}" for cell in row)
                    print(f"{cells}{ours:10.3f}{theirs:14.3f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
