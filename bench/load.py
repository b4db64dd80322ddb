"""How long loading takes, against transformers: a random checkpoint of the shape of Qwen2.5-0.5B.

    python bench/load.py            # about four minutes; 3 GB in a temporary folder

Every load is the first large one of a fresh process, as in a training script, after one of a tiny folder, so
that imports do not count. (In one process the second load would write into pages that the first has left.)
Both loaders map the file, so a load can return before a byte is read: "and read" adds reading every page
once. Fresh files are in the page cache, so this compares programs, not disks. The two take turns; medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model as models  # noqa: E402

SHAPE = models.Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_checkpoint(folder: Path, dtype: torch.dtype, shape: models.Config = SHAPE) -> None:
    """Random weights of `shape` in `folder`."""
    with torch.device("meta"):
        made = models.Qwen(shape)
    made = made.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, 0.02)
    models.save(made, folder)


def measure(who: str, small: str, folder: str, dtype: str) -> None:
    """In a process of its own: print seconds until load returns, and until every page was read."""
    load = models.load
    if who == "transformers":
        import transformers

        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForCausalLM.from_pretrained
    load(small, dtype=DTYPES[dtype])
    start = time.perf_counter()
    loaded = load(folder, dtype=DTYPES[dtype])
    returned = time.perf_counter()
    for p in loaded.parameters():
        p.detach().view(torch.uint8).view(-1)[::4096].sum()
    print(returned - start, time.perf_counter() - start)


def seconds(*arguments: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    load, read = done.stdout.split()
    return float(load), float(read)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="loads of each kind; the medians are shown")
    parser.add_argument("--measure", nargs=4, metavar="X", help="(what the fresh processes run)")
    args = parser.parse_args()
    if args.measure:
        return measure(*args.measure)

    import transformers

    who = ("abacus", "transformers")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, median of {args.repeats}, seconds")
    print(f"{'stored':>10}{'as':>10}{'':>10}{'abacus':>10}{'transformers':>14}{'ratio':>8}")
    for stored in DTYPES:
        with tempfile.TemporaryDirectory() as temporary:
            small, folder = f"{temporary}/small", f"{temporary}/model"
            make_checkpoint(Path(small), DTYPES[stored], replace(SHAPE, vocab_size=64, num_hidden_layers=1))
            make_checkpoint(Path(folder), DTYPES[stored])
            for dtype in DTYPES:
                times = {name: [] for name in who}
                for i in range(args.repeats):
                    for name in sorted(who, reverse=i % 2):
                        times[name].append(seconds(name, small, folder, dtype))
                for column, what in enumerate(("load", "and read")):
                    ours, theirs = (statistics.median(t[column] for t in times[name]) for name in who)
                    cells = "".join(f"{cell:>10}" for cell in (stored, dtype, what))
                    print(f"{cells}{ours:10.3f}{theirs:14.3f}{ours / theirs:8.2f}", flush=True)
    return None


if __name__ == "__main__":
    main()
