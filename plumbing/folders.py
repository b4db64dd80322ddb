"""Checkpoint folders: config.json, safetensors files, read and written."""

import ctypes
import json
import math
import mmap
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model import Config, Qwen

SHARD_BYTES = 5 * 10**9  # published checkpoints use shards of 5 GB


class CheckpointError(ValueError):
    """A folder that cannot be loaded: one line with what was found, what was expected, what to do."""


def read_config(folder: str | os.PathLike) -> Config:
    """The shape in folder/config.json. Raises CheckpointError for what is not a Qwen2 decoder as above."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a checkpoint folder with Qwen2 weights")
    raw = read_json(path)
    # Published folders have rope_theta at the top level, transformers 5 writes it inside rope_parameters.
    ropes = [raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}]
    rope = ropes[0] | ropes[1]
    raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    scaled = [r for r in ropes if {r.get("rope_type"), r.get("type")} - {None, "default"}]
    raw["rope_scaling"] = scaled[0] if scaled else None
    implemented = {"model_type": ["qwen2"], "hidden_act": ["silu", None], "use_sliding_window": [False, None]}
    implemented |= {
        "rope_scaling": [None],
        "quantization_config": [None],
    }  # nor is YaRN, which alters short contexts too
    for key, values in implemented.items():
        if raw.get(key) not in values:
            found, wanted = json.dumps(raw.get(key)), json.dumps(values[0])
            raise CheckpointError(f"{path}: {key} is {found}, which is not implemented; expected {wanted}")
    if raw.get("dual_chunk_attention_config"):
        note = "dual-chunk attention is not implemented; within one chunk plain attention is the same"
        print(f"{path}: {note}", file=sys.stderr)
    names = {f.name for f in fields(Config)} - {"extra"}
    extra = {k: v for k, v in raw.items() if k not in names | {"rope_parameters", "dtype", "layer_types"}}
    try:
        config = Config(**{k: v for k, v in raw.items() if k in names}, extra=extra)
    except TypeError as error:
        raise CheckpointError(f"{path}: {str(error).split('.__init__() ')[-1]}") from None
    check_values(config, path)
    width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head_dim = raw.get("head_dim") or width // heads
    if heads % kv_heads or head_dim * heads != width:
        raise CheckpointError(f"{path}: {width=}, {heads=}, {kv_heads=}, {head_dim=} do not fit together")
    return config


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises CheckpointError naming the file that holds none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found


def check_values(config: Config, path: Path) -> None:
    """Refuse what is not a number above 0 (true or false for a switch), before anything computes with it."""
    kinds = {int: ((int,), "a whole number above 0"), float: ((int, float), "a number above 0")}
    for f in fields(Config):
        value = getattr(config, f.name)
        types, expected = kinds.get(f.type, ((f.type,), "true or false"))
        if type(value) not in types or f.type in kinds and not value > 0:
            raise CheckpointError(f"{path}: {f.name} is {json.dumps(value)}; expected {expected}")


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards its index names. A shard that is not among them is refused; files of
    other names are not looked at."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
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


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(file: Path) -> dict[str, dict]:
    """What a safetensors file should hold: name -> {dtype, shape, data_offsets: bytes of the file}. Refuses a
    truncated one."""
    with open(file, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        try:
            header = json.loads(f.read(min(size, 10**8)))
        except ValueError:
            raise CheckpointError(f"{file}: not a whole safetensors file, unreadable header") from None
    header.pop("__metadata__", None)
    for tensor in header.values():
        tensor["data_offsets"] = [8 + size + offset for offset in tensor["data_offsets"]]
    expected = max((tensor["data_offsets"][1] for tensor in header.values()), default=8 + size)
    if file.stat().st_size != expected:
        raise CheckpointError(f"{file}: has {file.stat().st_size:,} bytes, its header expects {expected:,}")
    return header


def stored_dtypes(folder: str | os.PathLike) -> set[str]:
    """The dtypes in which a folder's tensors are stored, as safetensors names them: {"BF16"}."""
    return {tensor["dtype"] for file in weight_files(Path(folder)) for tensor in read_header(file).values()}


def find_tensors(folder: Path, model: Qwen) -> dict[str, tuple[Path, dict]]:
    """File and header entry of every tensor, by name. Refuses what does not fit the model exactly."""
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    wanted = set(expected)
    if model.lm_head is None:  # some tied checkpoints store the head a second time
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    found = {}
    for file in weight_files(folder):
        for name, tensor in read_header(file).items():
            shape, dtype = tensor["shape"], tensor["dtype"]
            if name not in expected or name in found:
                why = f"a second {name}" if name in found else f"{name}, which config.json does not expect"
                raise CheckpointError(f"{file}: extra tensor: {why}")
            if shape != expected[name]:
                raise CheckpointError(f"{file}: {name} has shape {shape}, expected {expected[name]}")
            if dtype not in DTYPES:
                known = " or ".join(DTYPES)
                raise CheckpointError(f"{file}: {name} is stored as {dtype}; expected {known}")
            begin, end = tensor["data_offsets"]
            if end - begin != (size := math.prod(shape) * DTYPES[dtype].itemsize):
                what = f"{name} has {end - begin:,} bytes, {dtype} of shape {shape} expects {size:,}"
                raise CheckpointError(f"{file}: {what}")
            found[name] = file, tensor
    missing = sorted(wanted - found.keys())
    if missing:
        what = f"{missing[0]} of shape {expected[missing[0]]}"
        raise CheckpointError(f"{folder}: missing tensor {what}; {len(missing)} of {len(wanted)} are missing")
    return found


def load(folder: str | os.PathLike, device="cpu", dtype: torch.dtype | None = None) -> Qwen:
    """A model from a safetensors folder, one file or shards; dtype None keeps the stored one.

    Built without storage and filled from memory-mapped files: what needs no conversion is the mapped file
    itself (copied page by page only where it is written to), the rest is converted tensor by tensor. Raises
    CheckpointError, mostly from the headers alone, for whatever does not fit.
    """
    folder = Path(folder)
    with torch.device("meta"):
        model = Qwen(read_config(folder))
    found = find_tensors(folder, model)
    mapped = {}
    for file in {file for file, _ in found.values()}:
        with open(file, "rb") as f:
            mapped[file] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(name: str) -> Tensor:
        file, tensor = found[name]
        begin, end = tensor["data_offsets"]
        stored = torch.frombuffer(mapped[file], dtype=torch.uint8, offset=begin, count=end - begin)
        stored = stored.view(DTYPES[tensor["dtype"]]).view(tensor["shape"])
        if torch.device(device).type == "cpu" and dtype in (None, stored.dtype):
            return stored
        converted = torch.empty(stored.shape, device=device, dtype=dtype or stored.dtype)
        block, page = 2**22, begin - begin % mmap.PAGESIZE
        for at in range(0, stored.numel(), block):
            converted.view(-1)[at : at + block] = stored.view(-1)[at : at + block]
            # pages that were read count as ours: give them back at once
            mapped[file].madvise(mmap.MADV_DONTNEED, page, end - page)
        return converted

    # Workers of one thread each: new pages cost more than the conversion, and OpenMP's idle threads would
    # spin against it. The largest tensors first, and by blocks, which bounds the memory.
    threads = torch.get_num_threads()
    largest_first = sorted(found, key=lambda name: -math.prod(found[name][1]["shape"]))
    with ThreadPoolExecutor(min(threads, 4), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        weights = dict(zip(largest_first, pool.map(read, largest_first), strict=True))
    torch.set_num_threads(threads)  # the workers' setting reaches the matrix library of this thread too
    head = weights.pop("lm_head.weight", None) if model.lm_head is None else None
    if head is not None and not head.equal(weights["model.embed_tokens.weight"]):
        raise CheckpointError(f"{folder}: lm_head.weight is not the embedding, but config.json ties them")
    dtypes = {str(p.dtype) for p in weights.values()}
    if len(dtypes) > 1:
        raise CheckpointError(f"{folder}: holds {' and '.join(sorted(dtypes))}; expected one, or give dtype")
    model.load_state_dict(weights, assign=True)
    return model


def save(model: Qwen, folder: str | os.PathLike, tokenizer=None) -> None:
    """Write the standard layout: config, weights in shards of 5 GB, tokenizer files if one is given.

    Written to a temporary folder beside it that then takes its place: a crash leaves the old folder. An
    existing folder is replaced as a whole, so one that is neither empty nor a checkpoint is refused. Without
    a tokenizer, the tokenizer files and generation_config.json of a folder that is replaced stay.
    """
    folder = Path(folder).resolve()
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not any(folder.glob("model*.safetensors")):
        raise FileExistsError(f"{folder}: exists and is not a checkpoint; expected a new or an empty folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_config(model, temporary, tokenizer)
        write_weights(model, temporary)
        if tokenizer is None and folder.exists():
            keep_texts(folder, temporary)
        exchange(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_config(model: Qwen, folder: Path, tokenizer) -> None:
    """config.json, and with a tokenizer its files and generation_config.json."""
    shape = asdict(model.config)
    shape = shape.pop("extra") | shape
    shape |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    shape |= {"torch_dtype": dtype, "use_sliding_window": False}
    if tokenizer is not None:
        tokenizer.save(folder)
        shape = {"bos_token_id": None} | shape | {"eos_token_id": tokenizer.stop_ids[0]}
        generation = {"do_sample": True} | tokenizer.generation | {"eos_token_id": list(tokenizer.stop_ids)}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(shape, indent=2) + "\n")


def keep_texts(old: Path, new: Path) -> None:
    """Copy what a checkpoint holds beside its model: tokenizer files, chat template, generation settings."""
    for file in old.iterdir():
        written = file.name == "config.json" or file.name.endswith(".index.json")
        if file.suffix in (".json", ".txt", ".jinja") and not written:
            shutil.copy2(file, new)


def write_weights(model: Qwen, folder: Path) -> None:
    """model.safetensors, or shards of up to 5 GB with their index; one shard at a time leaves the device."""
    shards, size = [{}], 0
    for name, p in model.named_parameters():
        if shards[-1] and size + p.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = p.detach()
        size += p.nbytes
    places = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        on_host = {name: p.cpu().contiguous() for name, p in shard.items()}
        save_file(on_host, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # the package lets only its owner read it
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(p.nbytes for p in model.parameters())}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def exchange(new: Path, old: Path) -> None:
    """Put `new` where `old` is, if it is; where Linux can, in one step, with no moment without either."""
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
