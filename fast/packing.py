"""Ragged rows without padding, and what neighbouring rows begin with alike only once."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.flash import Ragged, flash_attention, flash_fits
from model import Qwen, causal

# Rows are packed if that leaves at most this share of the padded tokens: on a CPU one attention for all rows
# is faster than one for each. On CUDA one FlashAttention call takes all packed rows.
SAVES = {"cpu": 0.8, "cuda": math.inf}


def packs(model: torch.nn.Module) -> bool:
    """Whether this is a Qwen with model.py's forward() and head(), not those of a subclass or its own."""
    if not isinstance(model, Qwen) or {"forward", "head"} & set(vars(model)):
        return False
    return type(model).forward is Qwen.forward and type(model).head is Qwen.head


def read_lengths(counts: Tensor) -> list[int]:
    """The number of tokens of each row that predict one that counts (B, T), at least 1.

    >>> read_lengths(torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]))
    [3, 1]
    """
    last = (counts * torch.arange(counts.size(1), device=counts.device)).amax(dim=1)
    return last.clamp(min=1).tolist()


class Packing:
    """Tokens (B, T), of which row b has lengths[b], laid out for the model without most of the padding.

        p = Packing(tokens, lengths)
        hidden = model(p.tokens, positions=p.positions, attend=p.attend).flatten(0, 1)
        hidden[p.place[b, t]]           # the hidden state of tokens[b, t], t < lengths[b]

    tokens (1, N), positions (1, N), place (B, T). Neighbouring rows that begin alike, as the samples of one
    prompt do, form a family: its shared beginning is there once, followed by the rest of each row. That is
    exact, because causal layers give equal beginnings equal results. Only attention mixes positions, so it
    sees every row whole.

    Where packing saves little (SAVES), tokens are (B, longest) and attention is that of whole rows. Without
    rows, one token stands in. No result uses it, but a rank without data takes part in what the others do.
    """

    def __init__(self, tokens: Tensor, lengths: list[int]):
        B, T = tokens.shape
        if len(lengths) != B or not all(0 < n <= T for n in lengths):
            raise ValueError(f"lengths {lengths} of {B} rows of {T} tokens; expected {B} from 1 to {T}")
        self.families = families(tokens, lengths) if B else []
        longest = max(lengths, default=1)
        packed = sum(shared + sum(n - shared for n in rows) for shared, rows in self.families)
        if packed and packed < SAVES[tokens.device.type] * B * longest:
            self._pack(tokens)
            return
        self.families = []
        self.tokens = tokens[:, :longest] if B else tokens.new_zeros(1, 1)
        self.positions = torch.arange(longest, device=tokens.device)[None]
        place = torch.arange(B * longest, device=tokens.device).view(B, longest)
        self.place = F.pad(place, (0, T - longest))

    def _pack(self, tokens: Tensor) -> None:
        (B, T), device = tokens.shape, tokens.device
        self.sizes: list[int] = []  # of each family, its beginning and the rest of each row
        index, positions, place = [], [], torch.zeros(B, T, dtype=torch.long)
        row = end = 0
        for shared, rows in self.families:
            place[row : row + len(rows), :shared] = torch.arange(end, end + shared)
            for b, first, last in [(row, 0, shared)] + [(row + i, shared, n) for i, n in enumerate(rows)]:
                positions.append(torch.arange(first, last))
                index.append(positions[-1] + b * T)
                place[b, first:last] = torch.arange(end, end + last - first)
                self.sizes.append(last - first)
                end += last - first
            row += len(rows)
        self.tokens = tokens.flatten()[torch.cat(index).to(device)][None]
        self.positions = torch.cat(positions).to(device)[None]
        self.place = place.to(device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of every row by itself, on and from (1, heads, N, head_dim)."""
        if not self.families:
            return causal(q, k, v)
        if flash_fits(q, q.shape[-1]):
            return self._flash(q, k, v)
        pieces = list(zip(*(x.split(self.sizes, dim=2) for x in (q, k, v)), strict=True))
        results = []
        for shared, rows in self.families:
            beginning, *rest = pieces[: 1 + len(rows)]
            pieces = pieces[1 + len(rows) :]
            for i, piece in enumerate(rest):
                whole = [torch.cat(pair, dim=2) for pair in zip(beginning, piece, strict=True)]
                known, new = causal(*(whole if shared else piece)).split((shared, piece[0].shape[2]), dim=2)
                results += [known, new] if i == 0 else [new]
        return torch.cat(results, dim=2)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen, rows = self.rows
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        if len(seen) > len(q):  # what rows share is there once; float32, in which its gradients are added up
            k, v = (x.float().index_select(0, seen).to(x.dtype) for x in (k, v))
        return flash_attention(q, k, v, rows).transpose(0, 1)[None]

    @functools.cached_property
    def rows(self) -> tuple[Tensor, Ragged]:
        """For flash_attention, which takes all rows in one call: which of the N tokens each row sees, row
        after row, and where its queries and these begin. The queries of a shared beginning are those of its
        family's first row."""
        queries = [n - (shared if i else 0) for shared, rows in self.families for i, n in enumerate(rows)]
        lengths = [n for _, rows in self.families for n in rows]
        device = self.tokens.device
        seen = torch.cat([row[:n] for row, n in zip(self.place, lengths, strict=True)])
        begins = [F.pad(torch.tensor(n).cumsum(0), (1, 0)).int().to(device) for n in (queries, lengths)]
        # with a longest_q of 1 the kernel would take every row to have one query, and some may have none
        return seen, Ragged(*begins, max(2, *queries), max(lengths))


def families(tokens: Tensor, lengths: list[int]) -> list[tuple[int, list[int]]]:
    """Neighbouring rows that begin alike, as (number of shared tokens, their lengths).

    A row joins the one before it unless less would be saved. [a b c], [a b d], [a x], of which the first two
    share 2 and all share 1: ((2, [3, 3]), (0, [2])), since 2 saved are not fewer than 1 + 1.
    """
    alike = (tokens[1:] == tokens[:-1]).long().cumprod(dim=1).sum(dim=1).tolist() + [0]
    found = [(lengths[0], [lengths[0]])]
    for i, length in enumerate(lengths[1:]):
        shared, rows = found[-1]
        common = min(shared, alike[i], length)
        better_next = len(rows) == 1 and min(alike[i + 1], length) > common
        if common and common * len(rows) > shared * (len(rows) - 1) and not better_next:
            found[-1] = (common, [*rows, length])
        else:
            found.append((length, [length]))
    return [(shared if len(rows) > 1 else 0, rows) for shared, rows in found]
