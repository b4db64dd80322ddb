"""Several ranks in one process, so that a test can compare them with one: a thread each."""

import threading

import torch
from torch import Tensor

from distributed import World


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
    """[work(world) for each of `size` ranks], run together."""
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
