"""How long loading takes: a random checkpoint of the shape of Qwen2.5-0.5B, against transformers.

    python bench/load.py                   # about four minutes; 3 GB in a temporary folder
    python bench/load.py --against none    # ours alone

Every load is the first large one of a fresh process, as in a training script, after one of a tiny folder, so
that imports do not count. Both loaders map the file and can return before a byte is read: "and read" adds
reading every page once. Fresh files are in the page cache, so this compares programs, not disks.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from timing import Row, median, options, parse, report, take_turns

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


def seconds(threads: int, *arguments: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    load, read = done.stdout.split()
    return float(load), float(read)


def rows(stored: str, dtype: str, small: str, folder: str, chosen) -> list[Row]:
    """Loading a folder stored in one dtype, in another one."""
    who = ["ours"] if chosen.against == "none" else ["ours", chosen.against]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in who}

    def turn(name: str) -> float:
        found[name].append(seconds(chosen.threads, name, small, folder, dtype))
        return found[name][-1][1]

    take_turns({name: lambda name=name: turn(name) for name in who}, chosen)
    made = []
    for column, what in enumerate(("load", "and read")):
        turns = {name: [t[column] for t in times[chosen.warmup :]] for name, times in found.items()}
        row = Row(f"{stored} as {dtype}, {what}", f"{median(turns['ours']):.3f} s", turns=turns)
        if chosen.against in turns:
            theirs = median(turns[chosen.against])
            row.against, row.ratio = f"{chosen.against}: {theirs:.3f} s", theirs / median(turns["ours"])
        made.append(row)
    return made


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("transformers",))
    parser.add_argument("--measure", nargs=4, metavar="X", help="(what the fresh processes run)")
    chosen = parse(parser, argv)
    if chosen.measure:
        measure(*chosen.measure)
        return []
    made = []
    for stored in DTYPES:
        with tempfile.TemporaryDirectory() as temporary:
            small, folder = f"{temporary}/small", f"{temporary}/model"
            make_checkpoint(Path(small), DTYPES[stored], replace(SHAPE, vocab_size=64, num_hidden_layers=1))
            make_checkpoint(Path(folder), DTYPES[stored])
            for dtype in DTYPES:
                made += rows(stored, dtype, small, folder, chosen)
    report(made, chosen)
    return made


if __name__ == "__main__":
    main()
