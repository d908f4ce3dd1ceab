"""An exact encoder that does most of its work in bf16: a cheap product with a rigorous error bound,
then fp32 for what is left.

CPUs with AVX512-BF16 or AMX multiply bf16 matrices 4.6 times as fast as fp32 ones (92 against 417
ms at 4096 x 576 x 18432, two cores). With x^ and w^ the rounded rows, |x.w - x^.w^| <= ||x - x^||
||w^|| + ||x|| ||w - w^|| (Cauchy-Schwarz; all norms are computed, not estimated). So all latents
that can be among those asked for are known, one in a hundred; these *survivors* are scored again in
fp32 from the original rows, and the selected set is that of an fp32 encoder. Nothing is approximate
but the time it takes.

bf16 keeps the order of its bit patterns for positive values, so maxima and comparisons run on
int16, several times faster. A shift added to every bias makes all thresholds positive. int8 (8.7
times as fast as fp32) loses: its bound is 8 times wider on real hidden states, 1,400 survivors a
row in place of 150 (docs/kernels.md).
"""

from __future__ import annotations

import functools

import torch

from saekit_kernels.workspace import Workspace

GROUP = 32  # columns a group, F/GROUP apart: a maximum over the middle axis is contiguous reads
# 9 MB of bf16 a thread at F = 18,432: the passes over it find it in the cache that the product left
# it in
CHUNK_ROWS = 256
# largest relative error of rounding to bf16, and of that error's own reference
ROUNDING = 2.0**-8 * 1.01
# norms beyond which bounds could overflow or vanish; such rows are left to the caller
LARGEST_ROW, SMALLEST_ROW = 1e15, 1e-15
TINY_WEIGHTS = 2.0**-40  # norm of a row
# norm of the longest row, below which squares of single weights underflow too
SMALLEST_WEIGHTS = 2.0**-60
OUTLIER = 64  # and so are rows of so many times the median norm
WEIGHT_ROWS = 1024  # passes over the weights go in pieces whose temporaries stay in cache
# a row with possible latents in more than this share of its groups costs less by an fp32 product
# with all of W
CROWDED_GROUPS = 0.7
# multiplications below which preparing the weights costs more than it saves
LEAST_PRODUCT = 1 << 31


@functools.cache
def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively; without that, bf16 products are slower than fp32
    ones."""
    support = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe is not None and probe() for probe in support)


class Filter:
    """x, W and b of one encoding in bf16, with what bounds the rounding. `low` below is the product
    plus bias plus `shift`."""

    def __init__(
        self,
        x_BD: torch.Tensor,
        W_FD: torch.Tensor,
        b_F: torch.Tensor,
        workspace: Workspace,
        threshold_F: torch.Tensor | None = None,
    ) -> None:
        """`threshold_F` is taken off the biases: what is positive is then above its threshold."""
        (B, D), F = x_BD.shape, W_FD.shape[0]
        self.workspace, self.F = workspace, F
        self.width = -(-F // GROUP) * GROUP
        # Two more columns carry the bias as a sum of two bf16 numbers; columns behind F stay at
        # -inf.
        self.W_low = workspace.get(
            "W_low", (self.width, D + 2), x_BD, fill=0.0, dtype=torch.bfloat16
        )
        self.W_low[F:] = 0.0
        self.W_low[F:, D] = -torch.inf
        self.norm_F, lost_F = _rounded(W_FD, self.W_low[:F, :D])
        self.norm_F.clamp_min_(1e-20)
        # What rounding to bf16 loses at most; measured, it is less, but its square underflows in
        # fp32 where weights are tiny.
        lost_share = torch.where(self.norm_F < TINY_WEIGHTS, 2.0**-8, lost_F / self.norm_F).max()
        self.x_low = x_BD.new_ones(B, D + 2, dtype=torch.bfloat16)
        length_B, peak_B = (
            torch.linalg.vector_norm(x_BD, order, dim=1) for order in (2, torch.inf)
        )
        # False for NaN too. A row of many times the usual norm would widen the shift, and with it
        # the rounding, for all the others.
        usual = length_B.nanmedian().clamp_min(SMALLEST_ROW)
        self.finite_B = (
            (length_B < OUTLIER * usual)
            & (length_B < LARGEST_ROW)
            & ((peak_B > SMALLEST_ROW) | (peak_B == 0))
        )
        _, lost_B = _rounded(torch.where(self.finite_B[:, None], x_BD, 0.0), self.x_low[:, :D])
        # fp32 sums of D + 2 products, in the filter and in what it is compared with.
        summation = 2 * (D + 2) * 2.0**-23
        self.error_B = torch.where(self.finite_B, lost_B + length_B * (lost_share + summation), 0.0)
        self.longest = self.norm_F.max()
        # A bias loses at most this share of the largest one: what two bf16 digits leave, and its
        # part in roundings of the sum.
        worst, share = 1.05 * self.error_B.max() * self.longest, 2.0**-16 + summation
        largest_bias = b_F.abs().max()
        if threshold_F is not None:
            b_F = b_F - threshold_F
            largest_bias = torch.maximum(largest_bias, b_F.abs().max())
        # enough that no bound below it reaches zero
        self.shift = worst + 2.5 * share * (largest_bias + worst)
        bias_F = b_F + self.shift
        self.bias_error = share * (largest_bias + self.shift)
        high = bias_F.bfloat16()
        self.W_low[:F, D], self.W_low[:F, D + 1] = high, (bias_F - high.float()).bfloat16()
        self.usable = bool(
            (self.longest > SMALLEST_WEIGHTS)
            & self.longest.isfinite()
            & bias_F.isfinite().all()
            & (self.finite_B.any())
        )
        self.norm_of_group = self._grouped_norm()

    def _grouped_norm(self) -> torch.Tensor:
        padded = self.norm_F.new_zeros(self.width)
        padded[: self.F] = self.norm_F
        return padded.view(GROUP, -1).amax(0)

    def above(self, rows: slice, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, column), rows counted from rows.start: every latent that may be positive, and a few
        that are not."""
        low = self.product(rows, slot)
        return self.survivors(low, rows, self.shift.expand(len(low)))

    def largest(
        self, rows: slice, slot: int, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same for the latents that may be among the k largest positive ones of a row; and
        which rows are crowded (C,): nothing is returned for those."""
        low = self.product(rows, slot)
        # The maximum of bit patterns is the maximum where a value is positive, else some value of
        # the group: a lower bound either way.
        best = low.view(torch.int16).view(len(low), GROUP, -1).amax(1).view(torch.bfloat16).float()
        floors = self.group_floors(best, rows)
        # k groups hold k latents: the k-th largest of the floors bounds the k-th largest value.
        # Below zero the ReLU decides.
        kth = floors.topk(k, dim=1, sorted=False).values.amin(1).clamp_min(self.shift)
        ceilings = best.mul_(2).sub_(floors)
        crowded = (ceilings >= kth[:, None]).sum(
            1, dtype=torch.int32
        ) > CROWDED_GROUPS * ceilings.shape[1]
        return *self.survivors(low, rows, torch.where(crowded, torch.inf, kth)), crowded

    def product(self, rows: slice, slot: int) -> torch.Tensor:
        """low (C,width) bf16: |low - (x.w + b + shift)| <= error_b norm_j + bias_error + ROUNDING
        |low|. In the buffer of `slot`."""
        x = self.x_low[rows]
        low = self.workspace.get(f"low {slot}", (CHUNK_ROWS, self.width), x)[: len(x)]
        return torch.mm(x, self.W_low.T, out=low)

    def group_floors(self, best: torch.Tensor, rows: slice) -> torch.Tensor:
        """(C,groups): each group, with `best` among its values, holds a latent whose exact value,
        shifted, is at least this."""
        floor = best - self.error_B[rows, None] * self.norm_of_group
        return floor.sub_(best.abs(), alpha=ROUNDING).sub_(self.bias_error)

    def survivors(
        self, low: torch.Tensor, rows: slice, floor_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, column), row-major: every latent whose exact shifted value may reach floor_B (>=
        shift), and a few that do not."""
        error_B = self.error_B[rows]
        row, column = positions(self.possible(low, rows, floor_B))
        value = low.flatten()[row * self.width + column].float()
        reach = (
            value + error_B[row] * self.norm_F[column] + ROUNDING * value.abs() + self.bias_error
        )
        keep = reach >= floor_B[row]
        return row[keep], column[keep]

    def possible(self, low: torch.Tensor, rows: slice, floor_B: torch.Tensor) -> torch.Tensor:
        """(C,width) bool: survivors and somewhat more, by the largest norm of all latents."""
        return low.view(torch.int16) >= self.least(rows, floor_B).view(torch.int16)[:, None]

    def least(self, rows: slice, floor_B: torch.Tensor) -> torch.Tensor:
        """(C,) bf16: below this no latent's exact shifted value can reach floor_B; inf for rows
        that are not finite."""
        least = (
            (floor_B - self.error_B[rows] * self.longest - self.bias_error)
            / (1 + ROUNDING)
            * (1 - 2.0**-7)
        )
        return torch.where(self.finite_B[rows], least.clamp_min(0.0), torch.inf).bfloat16()


def positions(hit_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of what is true, row-major. A width divisible by 8 is searched 8 columns at a
    time."""
    width = hit_BF.shape[1]
    if width % 8 or not hit_BF.is_contiguous():
        return hit_BF.nonzero().unbind(1)
    eights = hit_BF.view(torch.int64).flatten().nonzero()[:, 0]
    inside = hit_BF.view(-1, 8)[eights].flatten().nonzero()[:, 0]
    flat = (eights[inside >> 3] << 3) + (inside & 7)
    row = torch.div(flat, width, rounding_mode="floor")
    return row, flat - row * width


def _rounded(A: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write A's rows to `out` in bf16; (norm of what was written, norm of what was lost), each
    (rows,)."""
    norms, lost = [], []
    for piece, low in zip(A.split(WEIGHT_ROWS), out.split(WEIGHT_ROWS)):
        back = low.copy_(piece).float()
        norms.append(torch.linalg.vector_norm(back, dim=1))
        lost.append(torch.linalg.vector_norm(back.sub_(piece), dim=1))
    return torch.cat(norms), torch.cat(lost)
