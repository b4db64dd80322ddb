"""Model and tokenizer from a folder, or `tiny`."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

import model as models
from fast.products import use_fast_products
from plumbing.config import UsageError
from plumbing.folders import stored_dtypes
from plumbing.ranks import World
from tasks import instructions, toy_corpus
from tokenizer import Tokenizer

# What --model names beside folders -> the model with random weights of a seed; with the embedded tokenizer
BUILT: dict[str, Callable[[int], models.Qwen]] = {
    "tiny": lambda seed: models.Qwen(models.TINY).init_weights(seed)
}


def load_model(
    name: str, world: World, dtype: str, seed: int = 0, train: bool = False
) -> tuple[models.Qwen, Tokenizer]:
    """Model and tokenizer from a folder; "tiny" (BUILT) is the embedded model's shape with random weights.

    The model is on the world's device in `dtype`. With `train` it is on the host in float32 or the stored
    dtype, for World.shard. Raises UsageError for a folder that is missing or holds no model.
    """
    kind, device = world.dtype(dtype, name), world.device
    if dtype == "auto" and device.type == "cpu" and kind == torch.bfloat16:
        world.tell(
            "dtype", f"{name}: computed in bfloat16, as it is stored; --dtype float32 is exact, slower"
        )
    if train and kind == torch.float16:
        raise UsageError(f"--dtype {dtype}: gradients of a mean over many tokens vanish in it; take bfloat16")
    if train:
        kind, device = torch.float32, torch.device("cpu")
    if name in BUILT:
        from training.bpe import train_tokenizer

        tokenizer = train_tokenizer(toy_corpus(), models.TINY.vocab_size, whole=instructions())
        return use_fast_products(BUILT[name](seed).to(device=device, dtype=kind)), tokenizer
    if Path(name).is_file():
        raise UsageError(f"--model {name}: a file; expected a checkpoint folder with safetensors files")
    if not Path(name).is_dir():
        said = "no such folder; expected a checkpoint folder or `tiny`"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            said += f"; a model of the hub is downloaded first: hf download {name} --local-dir DIR"
        raise UsageError(f"--model {name}: {said}")
    if (Path(name) / ".metadata").is_file():
        raise UsageError(
            f"--model {name}: a checkpoint to resume from; python -m plumbing.shards export {name} OUT"
        )
    try:
        if train and len(stored_dtypes(name)) == 1:
            # the mapped files themselves: no memory per rank until they are sharded
            kind = None
        model, tokenizer = models.load(name, device=device, dtype=kind), Tokenizer.load(name)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--model {name}: {' '.join(str(error).split())}") from None
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"--model {name}: its JSON files are damaged ({error!r}); copy them anew") from None
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"--model {name}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding "
            f"{model.config.vocab_size} rows; expected ids below that"
        )
    return use_fast_products(model), tokenizer
