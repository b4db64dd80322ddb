"""Folders of tensors: JSON files, safetensors files or shards, and texts. Nothing here knows a model."""

import ctypes
import json
import mmap
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 5 * 10**9  # published checkpoints use shards of 5 GB
AT_ONCE = 2**22  # elements that are converted at once
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POINTER = b"version https://git-lfs.github.com/spec/"
OTHERS = {  # kind -> files, and what to do
    "a pickle, which can run code": (
        "*.bin *.pt *.pth *.ckpt",
        "save it anew with save_pretrained of transformers, on a machine where you trust it",
    ),
    "a GGUF file for llama.cpp": ("*.gguf", "take the folder that it was made from"),
    "weights for another library": ("*.h5 *.msgpack *.onnx *.npz", "take the model's PyTorch folder"),
}


class CheckpointError(ValueError):
    """A folder that cannot be loaded: one line with what was found, what was expected, what to do."""


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises CheckpointError for any other content."""
    try:
        refuse_pointer(path)
        found = json.loads(path.read_bytes())
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found


def refuse_pointer(file: Path) -> None:
    """Raise CheckpointError for what Git LFS leaves in place of a large file."""
    with open(file, "rb") as f:
        if f.read(len(POINTER)) == POINTER:
            said = "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
            raise CheckpointError(f"{file}: {said}")


def refuse_other_formats(folder: Path) -> None:
    """Raise CheckpointError for an adapter, and for a folder whose weights are not in safetensors files."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        said = f"an adapter of {base}, not a whole model; merge both first (merge_and_unload of peft)"
        raise CheckpointError(f"{folder}: {said}")
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").is_file():
        return
    for kind, (pattern, advice) in OTHERS.items():
        if found := sorted(file.name for name in pattern.split() for file in folder.glob(name)):
            raise CheckpointError(f"{folder}: found {found[0]}, {kind}; expected safetensors files; {advice}")


def _qwen2_entries(path: Path) -> dict:
    """The entries of a Qwen2 config.json, rope_theta and rope_scaling in one place. Raises CheckpointError
    for another architecture, and for what is not implemented."""
    refuse_other_formats(path.parent)
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: no config.json; expected a checkpoint folder with Qwen2 weights"
        )
    raw = read_json(path)
    # Published folders have rope_theta at the top level, transformers 5 writes it inside rope_parameters.
    ropes = [raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}]
    raw["rope_theta"] = (ropes[0] | ropes[1]).get("rope_theta", raw.get("rope_theta", 10_000.0))
    scaled = [rope for rope in ropes if {rope.get("rope_type"), rope.get("type")} - {None, "default"}]
    # YaRN is refused too: it changes short contexts as well.
    raw["rope_scaling"] = scaled[0] if scaled else None
    raw["use_sliding_window"] = bool(raw.get("use_sliding_window")) and slides(raw)
    implemented = {"model_type": ["qwen2"], "hidden_act": ["silu", None], "use_sliding_window": [False]}
    implemented |= {"rope_scaling": [None], "quantization_config": [None]}
    for key, values in implemented.items():
        if raw.get(key) not in values:
            found, wanted = json.dumps(raw.get(key)), json.dumps(values[0])
            more = "; docs/extending.md adds a model" if key == "model_type" else ""
            raise CheckpointError(
                f"{path}: {key} is {found}, which is not implemented; expected {wanted}{more}"
            )
    kinds = raw["layer_types"] if isinstance(raw.get("layer_types"), list) else []
    if other := [kind for kind in kinds if kind != "full_attention"]:
        said = f"layer_types has {json.dumps(other[0])}, which is not implemented"
        raise CheckpointError(f'{path}: {said}; expected "full_attention" in all layers')
    if raw.get("dual_chunk_attention_config"):
        note = "dual-chunk attention is not implemented; within one chunk plain attention is the same"
        print(f"{path}: {note}", file=sys.stderr)
    return raw


def slides(raw: dict) -> bool:
    """Whether any layer of a config.json with use_sliding_window has a window: those from max_window_layers
    on, unless layer_types says which."""
    if "sliding_window" in raw and raw["sliding_window"] is None:
        return False
    if isinstance(raw.get("layer_types"), list):
        return "sliding_attention" in raw["layer_types"]
    full, layers = raw.get("max_window_layers", 28), raw.get("num_hidden_layers")
    return not (type(full) is type(layers) is int and full >= layers)


def _check_values(config, path: Path) -> None:
    """Raise CheckpointError unless a dataclass holds numbers above 0 and, as switches, true or false."""
    kinds = {int: ((int,), "a whole number above 0"), float: ((int, float), "a number above 0")}
    for f in fields(config):
        value = getattr(config, f.name)
        types, expected = kinds.get(f.type, ((f.type,), "true or false"))
        if type(value) not in types or f.type in kinds and not value > 0:
            raise CheckpointError(f"{path}: {f.name} is {json.dumps(value)}; expected {expected}")


def read_config(path: Path, shape):
    """A Qwen2 config.json as the dataclass `shape`, whose field `extra` takes what has no field of its own.
    Raises CheckpointError for another architecture, and for values that do not fit together."""
    raw = _qwen2_entries(path)
    names = {f.name for f in fields(shape)} - {"extra"}
    extra = {k: v for k, v in raw.items() if k not in names | {"rope_parameters", "dtype", "layer_types"}}
    try:
        config = shape(**{k: v for k, v in raw.items() if k in names}, extra=extra)
    except TypeError as error:
        raise CheckpointError(f"{path}: {str(error).split('.__init__() ')[-1]}") from None
    _check_values(config, path)
    width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head_dim = raw.get("head_dim") or config.head_dim
    if heads % kv_heads or head_dim * heads != width:
        raise CheckpointError(f"{path}: {width=}, {heads=}, {kv_heads=}, {head_dim=} do not fit together")
    return config


def write_json(path: Path, entries: dict) -> None:
    """Write a JSON file, indented by two spaces."""
    path.write_text(json.dumps(entries, indent=2) + "\n")


# -- reading ---------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards in its index. Raises CheckpointError for a shard that is missing or
    not in the index. Files of other names are ignored."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        if other := sorted(file.name for file in folder.glob("*.safetensors")):
            found = f"{other[0]}, of another name or without its index"
            raise CheckpointError(f"{folder}: expected {single.name} or {index.name}, found {found}")
        raise CheckpointError(f"{folder}: expected {single.name} or {index.name}, found neither")
    names = [single.name]
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or {type(name) for name in places.values()} != {str}:
            raise CheckpointError(f"{index}: expected weight_map, an object of tensor names and their files")
        names = sorted(set(places.values()))
    if single.is_file() and names != [single.name]:
        found = "both, two models in one folder"
        raise CheckpointError(f"{folder}: expected {single.name} or {index.name}, found {found}")
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}, one of the {len(names)} shards in {index.name}")
    for file in sorted(folder.glob("model-?????-of-?????.safetensors")):
        if file.name not in names:
            found = f"extra shard {file.name}; expected the {len(names)} files from {names[0]} on alone"
            raise CheckpointError(f"{folder}: {found}; remove what is not this model's")
    return [folder / name for name in names]


def open_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: a page is copied when it is written to. Buffers of
    rotary phases, which older tools have written and config.json decides on, are left out."""
    refuse_pointer(file)
    try:
        with safe_open(file, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys() if ".rotary_emb." not in name}  # noqa: SIM118
    except SafetensorError as error:
        size = file.stat().st_size
        raise CheckpointError(f"{file}: not a whole safetensors file, {size:,} bytes ({error})") from None


def stored_dtypes(folder: str | os.PathLike) -> set[torch.dtype]:
    """The dtypes of a folder's tensors."""
    return {tensor.dtype for file in weight_files(Path(folder)) for tensor in open_tensors(file).values()}


def stored_in_bfloat16(folder: str | os.PathLike) -> bool:
    """Whether it is a checkpoint folder whose tensors all are."""
    try:
        return stored_dtypes(folder) == {torch.bfloat16}
    except (OSError, ValueError):
        return False


def find_tensors(folder: Path, shapes: Mapping[str, Sequence[int]], optional: str = "") -> dict[str, Tensor]:
    """The tensors of a folder, memory-mapped. Raises CheckpointError unless names and shapes are those in
    `shapes`; the tensor `optional` may be absent."""
    found = {}
    for file in weight_files(folder):
        for name, tensor in open_tensors(file).items():
            if name not in shapes or name in found:
                why = f"a second {name}" if name in found else f"{name}, which config.json does not expect"
                raise CheckpointError(f"{file}: extra tensor: {why}")
            shape, expected = list(tensor.shape), list(shapes[name])
            if shape != expected:
                raise CheckpointError(f"{file}: {name} has shape {shape}, expected {expected}")
            if tensor.dtype not in DTYPES:
                known = " or ".join(map(str, DTYPES))
                raise CheckpointError(f"{file}: {name} is stored as {tensor.dtype}; expected {known}")
            found[name] = tensor
    missing = sorted(shapes.keys() - found.keys() - {optional})
    if missing:
        what = f"{missing[0]} of shape {list(shapes[missing[0]])}"
        total = len(shapes.keys() - {optional})
        raise CheckpointError(f"{folder}: missing tensor {what}; {len(missing)} of {total} are missing")
    return found


def converted(stored: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of a mapped tensor, made in parts; the pages that were read are given back at once."""
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    made = torch.empty(stored.shape, device=device, dtype=dtype)
    for there, here in zip(made.view(-1).split(AT_ONCE), stored.view(-1).split(AT_ONCE), strict=True):
        there.copy_(here)
        begin = here.data_ptr() // page * page
        end = (here.data_ptr() + here.nbytes) // page * page
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
    return made


def read_tensors(
    folder: Path, shapes: Mapping[str, Sequence[int]], device: torch.device, dtype=None, optional: str = ""
) -> dict[str, Tensor]:
    """The tensors of a folder on `device`, by name; dtype None keeps the stored one.

    What needs no conversion is the mapped file itself. Raises CheckpointError as find_tensors does, and for a
    folder of several dtypes without `dtype`.
    """
    found = find_tensors(folder, shapes, optional)
    dtypes = sorted({str(dtype or tensor.dtype) for tensor in found.values()})
    if len(dtypes) > 1:
        raise CheckpointError(f"{folder}: holds {' and '.join(dtypes)}; expected one, or give dtype")

    def read(name: str) -> Tensor:
        stored = found[name]
        as_it_is = device.type == "cpu" and dtype in (None, stored.dtype)
        return stored if as_it_is else converted(stored, device, dtype or stored.dtype)

    # Workers of one thread each: new pages cost more than the conversion, and OpenMP's idle threads would
    # spin against it. The largest tensors come first, since they take longest.
    threads = torch.get_num_threads()
    names = sorted(found, key=lambda name: -found[name].numel())
    with ThreadPoolExecutor(min(threads, 4), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tensors = dict(zip(names, pool.map(read, names), strict=True))
    # The workers' setting reaches the matrix library of this thread too.
    torch.set_num_threads(threads)
    return tensors


# -- writing ---------------------------------------------------------------------------------------


def write(
    folder: str | os.PathLike,
    config: dict,
    tensors: Mapping[str, Tensor],
    tokenizer=None,
    texts: Path | None = None,
) -> None:
    """Write config.json, the tensors in shards of 5 GB, and the tokenizer's files.

    Without a tokenizer, the files are copied from the folder `texts`, by default from the replaced one.
    A temporary folder is written and then takes the place of `folder`: a crash leaves the old one. Raises
    FileExistsError for a folder that is neither empty nor a checkpoint.
    """
    folder = Path(folder).resolve()
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not any(folder.glob("model*.safetensors")):
        raise FileExistsError(f"{folder}: exists and is not a checkpoint; expected a new or an empty folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_texts(temporary, config, tokenizer)
        write_tensors(tensors, temporary)
        texts = texts or folder
        if tokenizer is None and texts.exists():
            copy_texts(texts, temporary)
        exchange(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_texts(folder: Path, config: dict, tokenizer=None) -> None:
    """Write config.json; with a tokenizer (it has save, stop_ids, generation) its files and
    generation_config.json."""
    if tokenizer is not None:
        tokenizer.save(folder)
        config = {"bos_token_id": None} | config | {"eos_token_id": tokenizer.stop_ids[0]}
        generation = {"do_sample": True} | tokenizer.generation | {"eos_token_id": list(tokenizer.stop_ids)}
        write_json(folder / "generation_config.json", generation)
    write_json(folder / "config.json", config)


def copy_texts(old: Path, new: Path) -> None:
    """Copy the files beside the tensors: tokenizer, chat template, generation settings."""
    for file in old.iterdir():
        written = file.name in ("config.json", "manifest.json") or file.name.endswith(".index.json")
        if file.suffix in (".json", ".txt", ".jinja") and not written:
            shutil.copy2(file, new)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, or shards of up to 5 GB with their index; one shard at a time leaves the
    device."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach()
        size += tensor.nbytes
    places = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        on_host = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(on_host, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # the package lets only its owner read it
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": places})


def exchange(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`. On Linux this is one step: there is no moment without either."""
    if not old.exists():
        new.rename(old)
        return
    libc, here, swap = ctypes.CDLL(None), -100, 2  # AT_FDCWD, RENAME_EXCHANGE: renameat2(2)
    paths = here, os.fsencode(new), here, os.fsencode(old)
    if hasattr(libc, "renameat2") and libc.renameat2(*paths, swap) == 0:
        return
    aside = old.with_name(f".{old.name}.old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
