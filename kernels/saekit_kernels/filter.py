"""An exact encoder that does most of its work in bf16: a cheap product with a rigorous error bound,
then fp32 for the latents that the bound cannot rule out.

CPUs with AVX512-BF16 or AMX multiply bf16 matrices 4.6 times as fast as fp32 ones (92 against 417
ms at 4096 x 576 x 18432, two cores). With x^ and w^ the rounded rows, |x.w - x^.w^| <= ||x - x^||
||w^|| + ||x|| ||w - w^|| (Cauchy-Schwarz; all norms are computed, not estimated). The few largest
dimensions of the rows have a second bf16 number each, so their part of the error is 2^-16 instead
of 2^-8. So all latents that can be selected are known, about one in a hundred; these *survivors*
are scored again in fp32 from the original rows, and the selected set is that of an fp32 encoder.
The result is exact; only the time depends on the data.

The bit patterns of positive bf16 values have the order of the values, so maxima and comparisons run
on int16, several times faster. A shift added to every bias makes all thresholds positive. int8 (8.7
times as fast as fp32) is slower overall: its bound is 8 times wider on real hidden states, with
1,400 survivors per row instead of 150 (docs/notes/kernels.md).
"""

from __future__ import annotations

import functools

import torch

from saekit_kernels.select import positions
from saekit_kernels.workspace import Workspace

# Columns per group, F/GROUP apart: a maximum over the middle axis reads contiguous memory.
GROUP = 32
# 9 MB of bf16 per thread at F = 18,432: the later passes find it in the cache.
CHUNK_ROWS = 256
# Largest relative error of rounding to bf16, with a margin for the rounded value as reference.
ROUNDING = 2.0**-8 * 1.01
# One dimension in so many, the largest of the rows, is represented by two bf16 numbers.
EXACT = 128
# Norms beyond which bounds could overflow or vanish; such rows are left to the caller.
LARGEST_ROW, SMALLEST_ROW = 1e15, 1e-15
OUTLIER = 64  # rows of more than this many times the median norm are left to the caller as well
TINY_WEIGHTS = 2.0**-40  # norm of a row
# Norm of the longest row below which squares of single weights underflow too.
SMALLEST_WEIGHTS = 2.0**-60
WEIGHT_ROWS = 1024  # rows per pass over the weights, so that temporaries stay in cache
# A row with possible latents in more than this fraction of its groups is cheaper by an fp32 product
# with all of W.
CROWDED_GROUPS = 0.7
WITHOUT_SIGN = 0x7FFF
# Multiplications below which preparing the weights costs more than it saves.
LEAST_PRODUCT = 1 << 31


@functools.cache
def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively; otherwise fp32 products are faster."""
    support = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe is not None and probe() for probe in support)


class Filter:
    """x, W and b of one encoding in bf16, with bounds of the rounding errors. `low` below is the
    product plus bias plus `shift`."""

    def __init__(
        self,
        x_BD: torch.Tensor,
        W_FD: torch.Tensor,
        b_F: torch.Tensor,
        workspace: Workspace,
        threshold_F: torch.Tensor | None = None,
        signed: bool = False,
    ) -> None:
        """`threshold_F` is subtracted from the biases: positive means above its threshold.
        `signed`: values count by their magnitude, of which every bound holds as well; F is then a
        multiple of GROUP."""
        (B, D), F = x_BD.shape, W_FD.shape[0]
        self.workspace, self.F, self.signed = workspace, F, signed
        self.width = -(-F // GROUP) * GROUP
        exact = max(D // EXACT, 1)  # dimensions with a second bf16 number
        # After the D columns two for the bias, as a sum of two bf16 numbers, and one for each
        # second number; columns after F stay at -inf.
        columns = D + 2 + 2 * exact
        self.W_low = workspace.get(
            "W_low", (self.width, columns), x_BD, fill=0.0, dtype=torch.bfloat16
        )
        self.x_low = x_BD.new_ones(B, columns, dtype=torch.bfloat16)
        length_B, peak_B = (
            torch.linalg.vector_norm(x_BD, order, dim=1) for order in (2, torch.inf)
        )
        # False for NaN too. A row of many times the usual norm would increase the shift, and with
        # it the rounding error, for all other rows.
        usual = length_B.nanmedian().clamp_min(SMALLEST_ROW)
        self.finite_B = (
            (length_B < OUTLIER * usual)
            & (length_B < LARGEST_ROW)
            & ((peak_B > SMALLEST_ROW) | (peak_B == 0))
        )
        x_BD = torch.where(self.finite_B[:, None], x_BD, 0.0)
        # Hidden states have a few dimensions that are far larger than the others. For these the
        # product is (x1 + x2) (w1 + w2) without x2 w2.
        large = torch.linalg.vector_norm(x_BD[:WEIGHT_ROWS], dim=0).topk(exact).indices
        first, second = slice(D + 2, D + 2 + exact), slice(D + 2 + exact, columns)
        _, lost_B = _rounded(x_BD, self.x_low, large, second, first)
        self.W_low[F:] = 0.0
        self.W_low[F:, D] = -torch.inf
        self.norm_F, lost_F = _rounded(W_FD, self.W_low[:F], large, first, second)
        self.norm_F.clamp_min_(1e-20)
        # The rounding error is measured, except where weights are so tiny that its square
        # underflows in fp32: there, the most that rounding to bf16 can lose.
        lost_share = torch.where(self.norm_F < TINY_WEIGHTS, 2.0**-8, lost_F / self.norm_F).max()
        # fp32 sums of so many products, in the filter and in the fp32 values it is compared with.
        summation = 2 * columns * 2.0**-23
        other_length_B = torch.linalg.vector_norm(x_BD.index_fill(1, large, 0.0), dim=1)
        self.error_B = lost_B + other_length_B * lost_share
        self.error_B += torch.where(self.finite_B, length_B, 0.0) * (summation + 4 * 2.0**-16)
        self.longest = self.norm_F.max()
        # A bias loses at most this share of the largest one: the rest after two bf16 numbers, and
        # its part in the rounding of the sum.
        worst, share = 1.05 * self.error_B.max() * self.longest, 2.0**-16 + summation
        largest_bias = b_F.abs().max()
        if threshold_F is not None:
            b_F = b_F - threshold_F
            largest_bias = torch.maximum(largest_bias, b_F.abs().max())
        # large enough that no bound falls below zero; magnitudes are not below it
        shift = worst + 2.5 * share * (largest_bias + worst)
        self.shift = torch.zeros_like(shift) if signed else shift
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
        """(row, column), rows counted from rows.start: all latents that may be positive."""
        low = self.product(rows, slot)
        return self.survivors(low, rows, self.shift.expand(len(low)))

    def largest(
        self, rows: slice, slot: int, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same for the latents that may be among the k largest positive ones of a row, and
        which rows are crowded (C,): nothing is returned for those."""
        low = self.product(rows, slot)
        best = self.group_maxima(low)
        floors = self.group_floors(best, rows)
        # k groups hold k different latents, so the k-th largest floor bounds the k-th largest value
        # from below. Below zero the ReLU decides.
        kth = floors.topk(k, dim=1, sorted=False).values.amin(1).clamp_min(self.shift)
        ceilings = best.mul_(2).sub_(floors)
        crowded = (ceilings >= kth[:, None]).sum(
            1, dtype=torch.int32
        ) > CROWDED_GROUPS * ceilings.shape[1]
        return *self.survivors(low, rows, torch.where(crowded, torch.inf, kth)), crowded

    def product(self, rows: slice, slot: int) -> torch.Tensor:
        """low (C,width) bf16: |low - (x.w + b + shift)| <= error_b norm_j + bias_error + ROUNDING
        |low|; if signed, |low| is stored. In the buffer of `slot`."""
        x = self.x_low[rows]
        low = self.workspace.get(f"low {slot}", (CHUNK_ROWS, self.width), x)[: len(x)]
        torch.mm(x, self.W_low.T, out=low)
        if self.signed:
            low.view(torch.int16).bitwise_and_(WITHOUT_SIGN)
        return low

    def group_maxima(self, low: torch.Tensor) -> torch.Tensor:
        """(C,groups) fp32: a value of each group, the largest if any value of it is positive."""
        # of the bit patterns
        return low.view(torch.int16).view(len(low), GROUP, -1).amax(1).view(torch.bfloat16).float()

    def group_floors(self, best: torch.Tensor, rows: slice) -> torch.Tensor:
        """(C,groups): each group, with `best` among its values, holds a latent whose exact value,
        shifted, is at least this."""
        floor = best - self.error_B[rows, None] * self.norm_of_group
        return floor.sub_(best.abs(), alpha=ROUNDING).sub_(self.bias_error)

    def survivors(
        self, low: torch.Tensor, rows: slice, floor_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, column), row-major: every latent whose exact shifted value may reach floor_B (>=
        shift), and a few others."""
        row, column, value, error = self._candidates(low, rows, floor_B)
        keep = value + error >= floor_B[row]
        return row[keep], column[keep]

    def intervals(
        self, rows: slice, slot: int, floor: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(row, column, least, most) of every latent that may reach `floor` (>= 0), row-major, and
        of a few others: least <= exact shifted value <= most."""
        low = self.product(rows, slot)
        floor_B = (self.shift + floor).expand(len(low))
        row, column, value, error = self._candidates(low, rows, floor_B)
        return row, column, value - error, value + error

    def _candidates(self, low, rows: slice, floor_B):
        """(row, column, value of the bf16 product, bound of its error) of what is `possible`."""
        row, column = positions(self.possible(low, rows, floor_B))
        value = low.flatten()[row * self.width + column].float()
        error = self.error_B[rows][row] * self.norm_F[column] + ROUNDING * value.abs()
        return row, column, value, error.add_(self.bias_error)

    def possible(self, low: torch.Tensor, rows: slice, floor_B: torch.Tensor) -> torch.Tensor:
        """(C,width) bool: the survivors and some more, by the largest norm of all latents."""
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


def _rounded(
    A: torch.Tensor, out: torch.Tensor, large: torch.Tensor, first: slice, second: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write A's rows to the first columns of `out` in bf16, and the first and second numbers of the
    columns `large` to the slices of those names. Returns (norms of the rounded rows, norms of the
    rounding errors without `large`), both (rows,)."""
    norms, lost = [], []
    for piece, low in zip(A.split(WEIGHT_ROWS), out.split(WEIGHT_ROWS)):
        back = low[:, : A.shape[1]].copy_(piece).float()
        norms.append(torch.linalg.vector_norm(back, dim=1))
        low[:, first] = back.index_select(1, large)
        error = back.sub_(piece)
        low[:, second] = -error.index_select(1, large)
        lost.append(torch.linalg.vector_norm(error.index_fill_(1, large, 0.0), dim=1))
    return torch.cat(norms), torch.cat(lost)
