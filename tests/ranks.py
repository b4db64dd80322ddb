"""Several ranks on one machine, so that a test can compare them with one: threads, or real processes.

Threads meet at every reduction and hold whole models: quick, for the scripts' own arithmetic. Processes are
what torchrun starts, over gloo with sharded models; they are forked from a server that has imported torch
once, which makes them cheap too.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plumbing.ranks import World


class Rank(World):
    """One rank of several in this process: a thread each, that meet at every reduction."""

    def __init__(self, rank: int, size: int, board: list, barrier: threading.Barrier):
        super().__init__("cpu")
        self.rank, self.size, self.board, self.meeting = rank, size, board, barrier

    def gather(self, items: list) -> list:
        self.board[self.rank] = items
        self.meeting.wait()
        found = [item for part in self.board for item in part]
        self.meeting.wait()
        return found

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.gather([x.detach().clone()])).sum(0)

    def max(self, x: Tensor) -> Tensor:
        return torch.stack(self.gather([x.detach().clone()])).amax(0)

    def clip_gradients(self, model: torch.nn.Module, limit: float) -> Tensor:
        for p in model.parameters():
            p.grad = self.sum(torch.zeros_like(p) if p.grad is None else p.grad)
        return super().clip_gradients(model, limit)


def on_ranks(size: int, work) -> list:
    """[work(world) for each of `size` ranks], run together in threads."""
    board, barrier, results = [None] * size, threading.Barrier(size, timeout=20), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Rank(rank, size, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _process(work: Callable[[], object], rank: int, size: int, port: int, pipe) -> None:
    """One process: what torchrun puts into the environment, then `work`; its result goes into the pipe."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({k: str(v) for k, v in here.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        found = True, work()
    except BaseException:  # noqa: BLE001, the test raises it
        found = False, traceback.format_exc()
    pipe.send_bytes(pickle.dumps(found))  # tensors by value: this process ends


def on_processes(size: int, work: Callable[[], object], lost: Sequence[int] = (), tries: int = 2) -> list:
    """[work() in each of `size` processes with torchrun's environment], run together; `work` is a function of
    a module, or a functools.partial of one, and so can be sent there. Ranks in `lost` may leave without a
    word: their result is None. Raises AssertionError with the first traceback.

    Once in some twenty runs a thread of gloo's (pt_gloo_runloop) ended a rank with SIGSEGV: such a run is
    repeated, with a warning."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "sft", "grpo", "ppo"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes, processes = [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        processes.append(context.Process(target=_process, args=(work, rank, size, port, there), daemon=True))
        processes[-1].start()
        there.close()
        pipes.append(here)
    results = []
    for rank, pipe in enumerate(pipes):
        assert pipe.poll(300), "a rank hangs"
        try:
            results.append(pickle.loads(pipe.recv_bytes()))
        except EOFError:
            results.append((rank in lost, f"rank {rank} left without a word"))
    for process in processes:
        process.join(10)
    crashed = [rank for rank, p in enumerate(processes) if p.exitcode == -signal.SIGSEGV]
    if crashed and tries > 1:
        warnings.warn(f"ranks {crashed} of {size} crashed (SIGSEGV); all are run once more", stacklevel=2)
        return on_processes(size, work, lost, tries - 1)
    broken = [text for good, text in results if not good]
    assert not broken, broken[0]
    return [None if rank in lost else value for rank, (_, value) in enumerate(results)]
