"""The run folder: configuration, one line of metrics a step, whole episodes, checkpoints, the final model.

    runs/name/config.json          the options of the run; --resume refuses others; and its sandbox's level
              metrics.jsonl        one line per step
              episodes.jsonl       a few whole episodes every few steps
              checkpoints/step-000020/   model folder + optimizer.pt, the last two
              final/               the trained model in the layout that other tools load

A checkpoint is written beside its place and renamed, so a folder with its name is complete. On --resume,
lines of steps after the checkpoint are dropped: the logs read as if nothing had happened.
"""

import json
import pickle
import shutil
import sys
from pathlib import Path

import torch

import config
import model as models
from config import UsageError
from distributed import World
from remote import RemoteSandbox
from sandbox import LEVELS, Sandbox
from tasks import PROTOCOLS, toy
from tokenizer import Tokenizer, train

KEEP = 2  # checkpoints that stay on disk
CHANGEABLE = frozenset(  # what a resumed run may change
    {"resume", "steps", "save_every", "out", "device", "sandbox_url"}
)


def load_model(name: str, world: World, dtype: str, seed: int = 0) -> tuple[models.Qwen, Tokenizer]:
    """Model and tokenizer from a folder; "tiny" is the embedded model's shape with random weights.

    Raises UsageError for a folder that is missing or does not hold a model.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in ("auto", *kinds):
        raise UsageError(f"--dtype {dtype}; expected auto, {', '.join(kinds)}")
    kind = kinds.get(dtype, torch.bfloat16 if world.device.type == "cuda" else torch.float32)
    if name == "tiny":
        heads = list(dict.fromkeys(p.system for p in PROTOCOLS.values()))
        tokenizer = train(toy.corpus(), models.TINY.vocab_size, whole=heads)
        model = models.Qwen(models.TINY).init_weights(seed)
        return model.to(device=world.device, dtype=kind), tokenizer
    if not Path(name).is_dir():
        raise UsageError(f"--model {name}: no such folder; expected a checkpoint folder or `tiny`")
    try:
        model, tokenizer = models.load(name, device=world.device, dtype=kind), Tokenizer.load(name)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--model {name}: {' '.join(str(error).split())}") from None
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"--model {name}: its JSON files are damaged ({error!r}); copy them anew") from None
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"--model {name}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding "
            f"{model.config.vocab_size} rows; expected ids below that"
        )
    return model, tokenizer


def note_rounding(model: models.Qwen, world: World) -> None:
    """Say on stderr, in one line, that weights about to be trained have fewer digits than float32."""
    kind = next(model.parameters()).dtype
    if world.main and kind != torch.float32:
        print(
            f"weights are {str(kind).removeprefix('torch.')} without float32 masters: updates below their "
            "rounding are lost; --dtype float32 trains exactly",
            file=sys.stderr,
        )


class Run:
    """A script's run folder. Only rank 0 writes; all ranks may read. Raises UsageError where the folder
    exists without --resume, or was made with other options."""

    def __init__(self, cfg, world: World, changeable: frozenset[str] = CHANGEABLE):
        self.cfg, self.world = cfg, world
        self.folder = Path(cfg.out)
        path = self.folder / "config.json"
        found = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        if any(p.is_file() for p in (self.folder, *self.folder.parents)):
            raise UsageError(f"--out {self.folder}: a file is in the way; expected a folder")
        begun = (
            found - {"config.json", "checkpoints"} or self.steps()
        )  # a run that failed at once may go again
        if begun and not cfg.resume:
            raise UsageError(f"--out {self.folder} exists; expected a new folder, or --resume to go on")
        if begun and "config.json" not in found:
            raise UsageError(f"--resume {self.folder}: no config.json; expected the folder of a run")
        if begun and (changed := config.differences(cfg, path, ignore=changeable)):
            raise UsageError(f"--resume {self.folder}: {'; '.join(changed)}; give the run's own options")
        self.found = config.read_found(path) if begun else {}
        world.barrier()
        if world.main:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            config.write(cfg, path, self.found)

    def note_sandbox(self, sandbox: Sandbox | RemoteSandbox) -> None:
        """Write the sandbox's level and layers, those of the weakest rank, into config.json; all ranks call
        it. Raises UsageError where a resumed run began with a stronger level; a server's is unknown, and so
        weaker than any."""
        every = self.world.gather([{"level": sandbox.level, "layers": sandbox.layers}])
        order = list(LEVELS)
        weakest = min(every, key=lambda found: order.index(found["level"]) if found["level"] in order else -1)
        before = self.found.setdefault("sandbox", weakest)
        layers = weakest["layers"]
        missing = [name for name in LEVELS.get(before["level"], ()) if layers.get(name) != "on"]
        if missing:
            lost = f"{missing[0]} is {layers.get(missing[0], 'unknown there')}"
            raise UsageError(
                f"--resume {self.folder}: the sandbox reaches level {weakest['level']} here, but the run "
                f"began at level {before['level']}: {lost}; resume where that level is reached, or accept "
                f'the weaker one by removing "found" from {self.folder / "config.json"}'
            )
        if self.world.main:
            config.write(self.cfg, self.folder / "config.json", self.found)

    def remember(self, name: str, value: str) -> None:
        """Note something that the options do not hold (a digest of the data); on --resume it must be the
        same. Raises UsageError."""
        path = self.folder / f"{name}.txt"
        if self.steps() and path.exists() and path.read_text() != value:
            raise UsageError(
                f"--resume {self.folder}: {name} has changed since; give what the run began with"
            )
        self.world.barrier()
        if self.world.main:
            path.write_text(value)

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-??????"))

    def restore(self, model: models.Qwen, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint into model and optimizer; the number of steps done (0 without one)."""
        if not self.cfg.resume or not self.steps():
            self._truncate_logs(0)
            return 0
        folder = self.steps()[-1]
        try:
            saved = models.load(folder, self.world.device, next(model.parameters()).dtype)
            model.load_state_dict(saved.state_dict())
            state = torch.load(folder / "optimizer.pt", map_location=self.world.device, weights_only=True)
            optimizer.load_state_dict(state)
        except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--resume: {reason}; remove {folder} to go on from the one before") from None
        done = int(folder.name.removeprefix("step-"))
        self._truncate_logs(done)
        return done

    def save(
        self, step: int, model: models.Qwen, optimizer: torch.optim.Optimizer, tokenizer: Tokenizer
    ) -> None:
        """Write checkpoints/step-NNNNNN after `step` steps; all ranks call it."""
        folder = self.folder / "checkpoints" / f"step-{step:06}"
        if self.world.main and not folder.exists():
            temporary = folder.with_name(f".{folder.name}")
            models.save(model, temporary, tokenizer)
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            temporary.rename(folder)
            for old in self.steps()[:-KEEP]:
                shutil.rmtree(old)
        self.world.barrier()

    def finish(self, model: models.Qwen, tokenizer: Tokenizer) -> None:
        """Write final/, the result for other tools and for the next script."""
        if self.world.main:
            models.save(model, self.folder / "final", tokenizer)
        self.world.barrier()

    def log(self, step: int, metrics: dict) -> None:
        """Append one line to metrics.jsonl; numbers are rounded to six significant digits. A step that was
        skipped is said on stderr too."""
        if self.world.main:
            if metrics.get("skipped"):
                print(f"\nstep {step}: no finite gradient, or no token to train: skipped", file=sys.stderr)
            rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
            self._append("metrics.jsonl", {"step": step} | rounded)

    def log_episodes(self, step: int, records: list[dict]) -> None:
        if self.world.main:
            for record in records:
                self._append("episodes.jsonl", {"step": step} | record)

    def _append(self, name: str, record: dict) -> None:
        with open(self.folder / name, "a") as f:
            f.write(json.dumps(record) + "\n")

    def _truncate_logs(self, done: int) -> None:
        """Drop lines of steps that will be done again, and a last line that was cut off."""
        for name in ("metrics.jsonl", "episodes.jsonl"):
            path = self.folder / name
            if not self.world.main or not path.exists():
                continue
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= done]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(path)
