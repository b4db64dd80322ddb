"""Everything that knows about ranks: start-up under torchrun, sums over ranks, a graceful stop.

Under `torchrun --nproc_per_node N` every rank runs the same script on its share of each batch. Losses are
weighted sums whose weights were computed for the whole batch (loss.token_weights), so gradients are simply
added up over ranks, and one rank gives the same numbers as N. Without torchrun all of this does nothing.
"""

import os
import signal
import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

import config
import plan
from config import UsageError


class World:
    """rank of size processes, and this one's device: `device`, else CUDA where there is one. Made once per
    script, by `with World(cfg.device) as world`. Raises UsageError for a device that is not there."""

    def __init__(self, device: str | None = None):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        kinds = ("cpu", "cuda") if cuda else ("cpu",)
        if device not in (None, *kinds):
            raise UsageError(f"--device {device}; expected {' or '.join(kinds)} on this machine")
        self.device = torch.device(device or kinds[-1])
        if self.device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        self.stopping = False

    def __enter__(self) -> "World":
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *error) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.size > 1:
            dist.destroy_process_group()

    def _on_signal(self, number: int, frame) -> None:
        """The first Ctrl-C or SIGTERM asks for a stop after this step; a second Ctrl-C stops at once."""
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopping = True
        if self.main:
            print("\nstopping after this step, with a checkpoint", file=sys.stderr)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over ranks, as a new tensor: what loss.token_weights takes as all_reduce."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The element-wise maximum over ranks, as a new tensor."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def _reduce(self, x: Tensor, op) -> Tensor:
        if self.size == 1:
            return x.detach().clone()
        there = x.detach().to(self.device, copy=True)  # NCCL takes no tensors of the host
        dist.all_reduce(there, op=op)
        return there.to(x.device)

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        return bool(self.sum(torch.tensor(float(self.stopping), device=self.device)))

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up every parameter's gradient over ranks; a rank without data contributes zeros."""
        if self.size == 1:
            return
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)

    def gather(self, items: list) -> list:
        """The items of all ranks, in order of rank, on every rank."""
        if self.size == 1:
            return items
        parts: list = [None] * self.size
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def progress(self, done: int, steps: int, name: str) -> tqdm:
        """The steps still to do, as a progress bar on rank 0; a line every half minute in a log file."""
        pause = 0.1 if sys.stderr.isatty() else 30.0
        quiet = not self.main
        return tqdm(range(done, steps), name, steps, initial=done, disable=quiet, mininterval=pause)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def share(self, items: Iterable) -> list:
        """This rank's items: every size-th one."""
        return list(items)[self.rank :: self.size]


def main() -> None:
    """The one command of this file: `python distributed.py plan`, what fits (plan.py)."""
    words = sys.argv[1:]
    if words[:1] != ["plan"]:
        raise UsageError(f"{' '.join(words[:1]) or 'no command'}; expected plan (see plan --help)")
    plan.main(words[1:])


if __name__ == "__main__":
    config.run(main)
