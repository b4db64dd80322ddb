"""Ranks: start-up under torchrun, sharded models (FSDP2), sums over ranks, a graceful stop.

Under `torchrun --nproc_per_node N` every rank runs the same script on its share of each batch. A loss is a
weighted sum, and its weights are computed for the whole batch (loss.token_weights). Gradients are therefore
summed over ranks, and one rank gives the same numbers as N. A training script needs four lines:

    model = world.shard(model, cfg)                               float32 masters, sharded over the ranks
    for rows, width in world.passes(micro_batches(...), model):   the micro-batches of a step
    norm = world.clip_gradients(model, cfg.grad_clip)             the norm over all ranks
    with world.whole(model): ...                                  all weights on every rank, to sample

One rank holds plain tensors and needs no process group; in a lower --dtype it has float32 masters beside them
(plumbing/masters.py). With --offload it is sharded too.
"""

import contextlib
import datetime
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from plumbing.config import UsageError
from plumbing.cores import cores
from plumbing.folders import stored_in_bfloat16
from plumbing.masters import masters, with_masters
from plumbing.progress import progress

# A model whose whole weights and gradients take at most this share of a rank's free memory is gathered once
# per optimiser step, see World.passes.
WHOLE_SHARE = 0.05
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# words in the error of a rank that waits for one that is gone
LOST = ("timed out", "timeout", "closed by peer", "connection reset", "connection refused", "broken pipe")
LOST += ("was likely closed", "failed to recv")


class Dropped(Exception):
    """SIGTERM has come: the step under way is given up, on all ranks."""


class World:
    """This process's rank among `size` processes, and its device: `device`, or CUDA where there is one.

    A script makes one, by `with World(cfg.device) as world`. A rank waits up to `timeout` seconds for the
    others, at the start and in every exchange. `graceful`, for training: a signal ends the run after a step,
    with a checkpoint. Raises UsageError for a missing device or rank.
    """

    def __init__(self, device: str | None = None, timeout: float = 1800.0, *, graceful: bool = True):
        # PyTorch then takes pages of 2 MiB for large tensors; the kernel clears each fresh page
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        kinds = ("cpu", "cuda") if cuda else ("cpu",)
        if device not in (None, *kinds):
            raise UsageError(f"--device {device}; expected {' or '.join(kinds)} on this machine")
        self.device = torch.device(device or kinds[-1])
        if self.device.type == "cuda":
            place, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if place >= count:
                said = f"--nproc_per_node is above the {count} GPUs here; lower it"
                raise UsageError(f"rank {self.rank}: {said}")
            torch.cuda.set_device(place)
        self.timeout, self.graceful = timeout, graceful
        self.store: dist.Store | None = None
        self.counters = 0
        self.stopping = self.dropping = False
        self.rescue: Callable[[], None] | None = None  # saves the weights after the last finished step
        self.discard: Callable[[], None] | None = None  # removes a run folder before the first step
        self.told: set[str] = set()

    def __enter__(self) -> "World":
        if self.size > 1:
            self._connect()
        if self.graceful:
            signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, Dropped) and self.rescue:
            self.rescue()
        if error is not None and self.discard:
            self.discard()
        if self.graceful:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # after an error this might wait for a lost rank
        if dist.is_initialized() and (error is None or isinstance(error, Dropped) or self.size == 1):
            dist.destroy_process_group()
        if isinstance(error, Dropped):
            raise SystemExit(0) from None
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST):
            raise self._lost(error) from error

    def _connect(self) -> None:
        """Start the process group, of all ranks or of this process alone."""
        if dist.is_initialized():
            return
        # gloo beside nccl: --offload keeps tensors on the host
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=self.timeout)
        group = {"rank": self.rank, "world_size": self.size, "timeout": timeout}
        try:
            self.store = dist.HashStore()
            if self.size > 1:
                self.store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=timeout))
                self.store.set_timeout(timeout)
            dist.init_process_group(backend, store=dist.PrefixStore("group", self.store), **group)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> UsageError:
        reason = str(error).splitlines()[0].strip()
        return UsageError(
            f"rank {self.rank} of {self.size}: another rank did not arrive within {self.timeout:g} s "
            f"(--rank-timeout), or ended; its own messages say why; start all ranks again"
            f"{', with --resume' if self.graceful else ''} ({reason})"
        )

    def _on_signal(self, number: int, frame) -> None:
        """Ctrl-C requests a stop after this step, a second one stops at once. SIGTERM drops the step at the
        next look(), and ends a run that has not begun."""
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopping, self.dropping = True, self.dropping or number == signal.SIGTERM
        what = "the current step is dropped" if self.dropping else "this step is finished, then saved"
        if self.main:
            print(f"\nstopping: {what}", file=sys.stderr)
        if self.dropping and self.rescue is None:
            raise Dropped

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over ranks, as a new tensor: the `all_reduce` of loss.token_weights."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The element-wise maximum over ranks, as a new tensor."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def _reduce(self, x: Tensor, op) -> Tensor:
        if self.size == 1:
            return x.detach().clone()
        # NCCL takes no tensors of the host
        there = x.detach().to(self.device, copy=True)
        dist.all_reduce(there, op=op)
        return there.to(x.device)

    def should_stop(self) -> bool:
        """Whether any rank got a stop signal; the same on all ranks."""
        return bool(self.sum(torch.tensor(float(self.stopping), device=self.device)))

    def look(self) -> None:
        """Raise Dropped if any rank got SIGTERM. All ranks call it together: between micro-batches, and when
        they have sampled."""
        cores().look()
        if self.sum(torch.tensor(float(self.dropping))):
            raise Dropped

    def look_alone(self) -> None:
        """Raise Dropped if this rank got SIGTERM: where the ranks take different numbers of steps."""
        if self.dropping:
            raise Dropped

    # -- models ------------------------------------------------------------------------------------

    def dtype(self, name: str, model: str = "tiny") -> torch.dtype:
        """The dtype of --dtype. auto is bfloat16 on CUDA, and on a CPU with instructions for it where the
        folder --model is stored in it; else float32. Raises UsageError."""
        if name not in ("auto", *DTYPES):
            raise UsageError(f"--dtype {name}; expected auto, {', '.join(DTYPES)}")
        if name != "auto":
            return DTYPES[name]
        if self.device.type == "cuda":
            return torch.bfloat16
        found = torch.cpu.get_capabilities()
        fast = found.get("avx512_bf16") or found.get("amx_bf16")
        return torch.bfloat16 if fast and stored_in_bfloat16(model) else torch.float32

    def shard(self, model: nn.Module, cfg, float32: Iterable[nn.Module] = ()) -> nn.Module:
        """The model, sharded for training in place. It has whole weights on the host; its optimiser is made
        afterwards. cfg: a script's options model, dtype, checkpointing and offload.

        FSDP2 shards each block, and the other parameters together. A block is a member of an nn.ModuleList.
        Masters are float32; they are gathered in cfg.dtype to compute, and gradients are summed in float32.
        Frozen parameters have no masters and are kept in cfg.dtype. The modules in `float32` compute in
        float32. The head is called after the forward pass: parameters outside the blocks therefore stay
        gathered until the backward pass or release(). cfg.checkpointing is set on every module that has the
        attribute.
        """
        for module in model.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing = cfg.checkpointing
        if self.size == 1 and not cfg.offload:
            return with_masters(model.to(self.device), self.dtype(cfg.dtype, cfg.model), float32)
        if cfg.offload and self.device.type == "cpu":
            raise UsageError("--offload on a CPU, whose memory is the host's already; leave it out")
        # slow to import: half as long as torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        self._connect()
        mesh = dist.init_device_mesh(self.device.type, (self.size,))
        offload = CPUOffloadPolicy() if cfg.offload else OffloadPolicy()
        wide, computed = list(float32), self.dtype(cfg.dtype, cfg.model)
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        blocks = [block for found in lists for block in found]
        for unit in (*wide, *blocks, model):
            kind = torch.float32 if unit in wide else computed
            for p in unit.parameters():
                p.data = p.data.to(torch.float32 if p.requires_grad else kind)
            # cast_forward_inputs would round the rotary tables
            policy = MixedPrecisionPolicy(kind, torch.float32, cast_forward_inputs=False)
            fully_shard(unit, mesh=mesh, mp_policy=policy, offload_policy=offload)
            # the sum, not the mean; gloo has no other reduction
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        whole = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        least = -self.max(torch.tensor(-float(self.free_memory()))).item()
        model.exchanged_once = not cfg.offload and 0 < whole <= WHOLE_SHARE * least
        self._keep_after_forward(model)
        return model

    @staticmethod
    def _keep_after_forward(model: nn.Module) -> None:
        """Keep units gathered from the forward to the backward pass: the root, whose head is called later, or
        all units of a model that is exchanged once."""
        for unit in model.modules():
            if hasattr(unit, "unshard"):
                keep = unit is model or model.exchanged_once
                unit.set_reshard_after_forward(not keep, recurse=False)

    def passes(self, parts: Iterable, *models: nn.Module) -> Iterator:
        """The micro-batches of an optimiser step on `models`.

        A small model (WHOLE_SHARE) is exchanged once: its weights are gathered in the first micro-batch, and
        its gradients are summed over ranks in the last one.
        """
        parts = list(parts)
        for i, part in enumerate(parts):
            self.look()
            for model in models:
                if getattr(model, "exchanged_once", False):
                    model.set_requires_gradient_sync(i == len(parts) - 1)
                    model.set_reshard_after_backward(i == len(parts) - 1)
            yield part

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Inside, every rank holds all weights as plain tensors, in the dtype that it computes in. Ranks can
        then sample different numbers of tokens."""
        units = [module for module in model.modules() if hasattr(module, "unshard")]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
        if units:
            self.barrier()
        for unit in units:
            unit.reshard()
        if units:
            self._keep_after_forward(model)

    def release(self, *models: nn.Module) -> None:
        """Reshard weights that a forward pass without a backward pass has left gathered."""
        for unit in (unit for model in models for unit in model.modules()):
            if hasattr(unit, "unshard"):
                unit.reshard()

    def clip_gradients(self, model: nn.Module, limit: float) -> Tensor:
        """The norm of the gradients over all ranks, which are then scaled to a norm of at most `limit`.

        Every rank gets the same norm. It is not finite if any rank's gradient is not.
        """
        if not hasattr(model, "unshard"):
            return nn.utils.clip_grad_norm_(masters(model).parameters(), limit)
        shards = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
        squares = [shard.norm().double().square().to(self.device) for shard in shards]
        norm = self.sum(torch.stack(squares).sum()).sqrt() if shards else torch.zeros((), device=self.device)
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).float()
        for shard in shards:
            shard.mul_(scale.to(shard.device))
        return norm.float()

    def free_memory(self) -> int:
        """Bytes that this rank can still allocate on its device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info()[0]
        try:
            with open("/proc/meminfo") as f:
                sizes = dict(line.split(":") for line in f)
        except OSError:
            return sys.maxsize  # unknown
        return int(sizes["MemAvailable"].split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    # -- the rest ----------------------------------------------------------------------------------

    def gather(self, items: list) -> list:
        """The items of all ranks, in order of rank, on every rank."""
        if self.size == 1:
            return items
        parts: list = [None] * self.size
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def progress(self, done: int, steps: int, name: str) -> tqdm:
        """The steps from `done` on, as a progress bar on rank 0."""
        return progress(steps, name, range(done, steps), done, disable=not self.main, leave=True)

    def tell(self, subject: str, line: str) -> None:
        """Print a line on stderr, once per rank and subject."""
        if subject not in self.told:
            print(f"rank {self.rank}: {line}" if self.size > 1 else line, file=sys.stderr)
            self.told.add(subject)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def counter(self) -> Callable[[], int]:
        """A function that counts its calls on all ranks together: 1, 2, ... All ranks make their counters in
        the same order."""
        self.counters += 1
        if self.size == 1:
            return itertools.count(1).__next__
        return functools.partial(self.store.add, f"counter {self.counters}", 1)

    def take(self, items: Sequence) -> Iterator:
        """This rank's items of a queue that all ranks share: the next one goes to the rank that is the first
        to ask. All ranks take from the same queues in the same order."""
        place = self.counter()
        while (number := place()) <= len(items):
            yield items[number - 1]

    def share(self, items: Iterable) -> list:
        """This rank's items: every size-th one, from the rank-th on."""
        return list(items)[self.rank :: self.size]
