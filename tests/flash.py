"""flash_attention as a loop over rows, on any device and in any dtype, and the CUDA engine on a CPU."""

import torch
from torch import Tensor

import sample
from fast import cuda, packing
from fast.flash import Ragged


def plain_flash_attention(q: Tensor, k: Tensor, v: Tensor, rows: Ragged) -> Tensor:
    """As flash_attention, by softmax, and as particular: with a longest_q of 1, every row needs a query."""
    begins_q, begins_k, longest_q, longest_k, used = rows
    assert longest_q > 1 or len(q) == len(begins_q) - 1
    begins_q, begins_k = begins_q.tolist(), begins_k.tolist()
    group, outputs = q.shape[1] // k.shape[1], []
    for r, (first, last) in enumerate(zip(begins_q, begins_q[1:], strict=False)):
        seen = begins_k[r + 1] - begins_k[r] if used is None else int(used[r])
        assert last - first <= longest_q and seen <= longest_k
        keys, values = (x[begins_k[r] : begins_k[r] + seen].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first:last], keys) / q.shape[-1] ** 0.5
        places = torch.arange(seen - (last - first), seen, device=q.device)
        hidden = torch.arange(seen, device=q.device) > places[:, None]
        outputs.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)
        )
    return torch.cat(outputs)


class Eager(cuda.Graphs):
    """Graphs without graphs: the same buckets of rows, computed each time."""

    def __init__(self, rows, device):
        self.rows, self.device, self.graphs, self.places = rows, device, {}, []
        self.waited = 0

    def replay(self, count, step):
        rows = min(self.bucket(count), self.rows)
        return [x[:count] for x in step(torch.arange(rows, device=self.device) < count)]


def use_flash(monkeypatch) -> None:
    """Sample and train as on CUDA, with the kernel above, on the device and in the dtype at hand."""
    for module in (packing, cuda):
        monkeypatch.setattr(module, "flash_attention", plain_flash_attention)
    monkeypatch.setattr(packing, "flash_fits", lambda x, head_dim: True)
    monkeypatch.setitem(packing.SAVES, "cpu", packing.SAVES["cuda"])
    monkeypatch.setattr(sample, "fastest_engine", cuda.Flash)
    monkeypatch.setattr(cuda, "Graphs", Eager)
