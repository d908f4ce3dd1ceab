"""The encoder: rows x -> codes, in two plans and three policies.

Plans. "fused": the product in Triton, and only candidates are stored (gpu/filter.py). "gemm": the
vendor's product of a chunk of rows, in bf16 for bf16 inputs, then the same candidates in one read.
"auto" is fused for 16-bit inputs up to d = 1536: not writing B x F saves 48 % of the GEMM at d =
768 and 16 % at d = 2304, against which stands how much slower than the vendor's a product with this
epilogue is. Nobody has measured that, and the instructions suggest that d = 1536 is too high
(docs/notes/gpu.md). An fp32 GEMM takes ten times as long, so there is little to save, and Triton's
runs on plain FMAs, as it also does where x and W differ in type: both go to "gemm". The plans
differ in the rounding of the pre-activations that are compared: fp32 sums by "fused", bf16 by
"gemm", as a dense step under autocast has them.

TopK. A column sample gives each row a bound: the pre-activations of every S-th latent (S = 32: 3 %
more FLOPs) and their r-th largest, r = k/S + 4 sqrt(k/S) + 4. About S r entries of a row pass it (k
= 32: 288), and fewer than k in one of 10^6 rows; those are redone exactly, so the sample affects
the time and never the result. Nothing waits for the device.

Thresholds (ReLU, JumpReLU) and BatchTopK. Rows differ too much for a fixed width: in a language
model one in forty has fifty times the entries of the mean row. Their codes are ragged, and only the
device knows the number of entries, which the shapes of everything after it depend on: the host
waits for it once, after the product. A threshold that admits more entries than the sparse path is
good for gives no codes, and the caller takes the dense path. BatchTopK guesses a bound for the
whole batch; when too few or too many entries pass, the filter runs again with another one.

Keys, ties, NaN and non-positive values: gpu/select.py. Nothing here has a gradient.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl

from saekit_kernels.codes import RaggedCodes, SparseCodes
from saekit_kernels.gpu.filter import candidates, choose, pack, product
from saekit_kernels.gpu.redo import redo_rows
from saekit_kernels.gpu.runtime import Case, jit, unit_stride
from saekit_kernels.gpu.select import check_k, group_bound, groups_for, new_codes

FUSED_UP_TO_D = 1536
SAMPLE_BYTES = 1 << 28  # fp32 pre-activations of the sample held at a time
SAMPLE_STRIDE = 32
NAN_KEY = 0x7FFFFFFF
FIRST_STEP = 1 << 21  # of a search over keys: a factor of 1.2; 1 << 23 would be one of 2
ROOM = 8  # times B k: the most candidates that a batch-wide selection looks at
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@jit
def bound_kernel(pre_ptr, b_ptr, bound_ptr, n, rank, pre_stride, GROUPS: tl.constexpr):
    """A key that `rank` of the n sampled entries of a row reach. When fewer are positive, the key
    is 1, which every positive entry reaches."""
    row = tl.program_id(0).to(tl.int64)
    bound = group_bound(pre_ptr + row * pre_stride, b_ptr, n, rank, "biased", 1, GROUPS)
    tl.store(bound_ptr + row, tl.maximum(bound, 1))


def checked(x_BD, W_FD, b_F) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Detached, with unit stride along the rows. Raises ValueError where shapes, dtypes or devices
    do not fit."""
    if (
        x_BD.ndim != 2
        or W_FD.ndim != 2
        or b_F.shape != W_FD.shape[:1]
        or x_BD.shape[1] != W_FD.shape[1]
    ):
        raise ValueError(
            f"expected x (B,D), W (F,D), b (F), got {tuple(x_BD.shape)}, {tuple(W_FD.shape)},"
            f" {tuple(b_F.shape)}"
        )
    if any(t.dtype not in FLOATS for t in (x_BD, W_FD, b_F)):
        raise ValueError(
            f"expected fp32, bf16 or fp16, got {x_BD.dtype}, {W_FD.dtype}, {b_F.dtype}"
        )
    if len({t.device for t in (x_BD, W_FD, b_F)}) > 1:
        raise ValueError(
            f"x, W and b are on different devices: {x_BD.device}, {W_FD.device}, {b_F.device}"
        )
    return unit_stride(x_BD.detach()), unit_stride(W_FD.detach()), b_F.detach().contiguous()


def sample_plan(F: int, k: int) -> tuple[int, int]:
    """(stride, rank): every stride-th latent is sampled, and the rank-th largest of the sample is
    the bound. The sample has at least 4 rank latents unless the stride is 1."""
    stride = SAMPLE_STRIDE
    while True:
        mean = k / stride
        rank = int(mean + 4 * mean**0.5 + 4)
        if stride == 1 or F // stride >= 4 * rank:
            return stride, rank
        stride //= 2


def sample_bounds(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, stride: int, rank: int
) -> torch.Tensor:
    """(B,) int32 keys."""
    W, b, B = W_FD[::stride], b_F[::stride].float().contiguous(), len(x_BD)
    n = len(b)
    bound = torch.empty(B, dtype=torch.int32, device=x_BD.device)
    groups, warps = groups_for(n, rank)
    rows = max(SAMPLE_BYTES // (4 * n), 1)
    for start in range(0, B, rows):
        pre = product(x_BD[start : start + rows], W)
        bound_kernel[(len(pre),)](
            pre,
            b,
            bound[start : start + rows],
            n,
            rank,
            pre.stride(0),
            GROUPS=groups,
            num_warps=warps,
        )
    return bound


def plan_of(plan: str, x_BD: torch.Tensor, W_FD: torch.Tensor) -> str:
    """fused | gemm. Raises ValueError for an unknown plan."""
    if plan not in ("auto", "gemm", "fused"):
        raise ValueError(f"plan must be auto, gemm or fused, got {plan!r}")
    if plan != "auto":
        return plan
    narrow = x_BD.shape[1] <= FUSED_UP_TO_D
    return "fused" if narrow and x_BD.dtype == W_FD.dtype != torch.float32 else "gemm"


def encode_topk(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, k: int, plan: str = "auto"
) -> tuple[SparseCodes, torch.Tensor]:
    """The k largest of ReLU(x W^T + b) of each row, and the number of rows that were redone (int32
    on the device).

    Raises ValueError when k is not in [1, F] or the plan is not auto, gemm or fused.
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    check_k("k", k, F, B)
    plan = plan_of(plan, x, W)
    codes = new_codes(B, k, F, x.device)
    if B == 0:
        return codes, torch.zeros((), dtype=torch.int32, device=x.device)
    stride, rank = sample_plan(F, k)
    bound = sample_bounds(x, W, b, stride, rank)
    flag = torch.zeros(B, dtype=torch.int32, device=x.device)
    for found in candidates(x, W, b, plan, stride * rank, bound=bound):
        choose(found, codes, flag, bound)
    return codes, redo_rows(x, W, b, codes, flag)


def encode_threshold(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    theta: torch.Tensor,
    room: int,
    plan: str = "auto",
) -> RaggedCodes | None:
    """The pre-activations above theta (F,), or above one theta (0-d), and above 0. None when there
    are more than `room` of them in the whole batch.

    Waits for the device once. Raises ValueError for a theta that does not fit, and for a `room` of
    2^31 or more.
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    if theta.shape not in ((), (F,)) or theta.dtype not in FLOATS or theta.device != x.device:
        raise ValueError(
            f"theta must be a float tensor () or ({F},) on {x.device}, got {theta.dtype}"
            f" {tuple(theta.shape)}"
        )
    if room >= 2**31:
        raise ValueError(f"room for {room:,} entries: it must stay below 2^31")
    chunks = candidates(x, W, b, plan_of(plan, x, W), theta=theta.detach())
    first, vals, idx = pack(chunks, B, room, x.device)
    total = int(first[-1])
    if total > room:
        return None
    return RaggedCodes(first.to(torch.int32), vals[:total], idx[:total], F)


def encode_relu(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, room: int, plan: str = "auto"
) -> RaggedCodes | None:
    """The positive pre-activations: encode_threshold at 0."""
    return encode_threshold(x_BD, W_FD, b_F, torch.zeros((), device=x_BD.device), room, plan)


def keys_of(vals: torch.Tensor) -> torch.Tensor:
    """positive_key of gpu/select.py in torch."""
    return torch.where(
        vals.isnan(), NAN_KEY, vals.float().contiguous().view(torch.int32).clamp(min=0)
    )


def encode_batchtopk(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    k: int,
    bound: torch.Tensor | None = None,
    plan: str = "auto",
) -> tuple[RaggedCodes, torch.Tensor]:
    """(codes, threshold): the B k largest positive pre-activations of the batch, ties to the
    smallest b F + j. threshold (0-d) is the smallest kept value, 0 when nothing is kept.

    `bound` (0-d) is a guess below the threshold, such as 0.85 of the last one. A wrong guess only
    costs time: the product runs again with another bound. Waits for the device once for each.
    Raises ValueError unless 1 <= k <= F and B k < 2^31 / 8.
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    check_k("k", k, F, ROOM * B)
    if B == 0:
        nothing = RaggedCodes(b.new_zeros(1).int(), b.new_zeros(0), b.new_zeros(0).int(), F)
        return nothing, torch.zeros((), device=x.device)
    first, vals, idx = batch_candidates(x, W, b, B * k, bound, plan_of(plan, x, W))
    return largest_of_batch(RaggedCodes(first, vals, idx, F), B * k)


def batch_candidates(
    x_BD, W_FD, b_F, wanted: int, bound: torch.Tensor | None, plan: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first (B+1,), vals, idx) of all entries at or above some key that `wanted` entries reach, or
    of all positive ones, end to end.

    A search over keys: at `many` and below more entries pass than there is room for, at `few` and
    above fewer than are wanted. The guess is mostly right, and one product enough.
    """
    B, room = len(x_BD), ROOM * wanted
    sampled = functools.partial(sample_key, x_BD, W_FD, b_F, wanted)
    many, few, ties, step = 0, NAN_KEY + 1, 0, FIRST_STEP
    guess = sampled() if bound is None else keys_of(bound.detach().reshape(())).clamp(min=1)
    key, guessed = guess, bound is not None
    while True:
        chunks = candidates(x_BD, W_FD, b_F, plan, bound=key)
        first, vals, idx = pack(chunks, B, room, x_BD.device)
        total, at = torch.stack([first[-1], key.long()]).tolist()  # the wait
        if wanted <= total <= room or (total < wanted and at == 1):
            return first, vals[:total], idx[:total]
        # NaN is the largest key: of these the first ones win.
        if total > room and at == NAN_KEY:
            return first.clamp_(max=room), vals, idx
        if total > room:
            many, ties, next_key = at, total, at + step
        else:
            few, next_key = at, at - step
        # A guess that failed, such as that of a run's first step, is followed by the sample's. When
        # nothing lies between, the entries of key `many` are tied, and all of them are needed.
        if guessed and many < (by_sample := int(sampled())) < few:
            next_key = by_sample
        elif few - many == 1:
            room, next_key = ties, many
        elif not many < next_key < few:
            next_key = (many + few) // 2
        key, step, guessed = torch.full_like(key, next_key), 2 * step, False


def sample_key(x_BD, W_FD, b_F, wanted: int) -> torch.Tensor:
    """A key that somewhat more than `wanted` entries of the batch reach, by every S-th latent."""
    stride, F = SAMPLE_STRIDE, len(W_FD)
    while F // stride < 4 * SAMPLE_STRIDE and stride > 1:
        stride //= 2
    keys = keys_of(product(x_BD, W_FD[::stride]) + b_F[::stride].float()).flatten()
    mean = wanted / stride
    rank = min(int(mean + 4 * mean**0.5 + 4), len(keys))
    return keys.topk(rank, sorted=False).values.amin().clamp(min=1)


def largest_of_batch(pool: RaggedCodes, wanted: int) -> tuple[RaggedCodes, torch.Tensor]:
    """The `wanted` largest entries, ties to the first ones, and the smallest of them."""
    device, total = pool.vals.device, len(pool.vals)
    if total == 0:
        nothing = RaggedCodes(pool.ptr.to(torch.int32), pool.vals, pool.idx, pool.F)
        return nothing, torch.zeros((), device=device)
    # Which entries win.
    keys, count = keys_of(pool.vals), min(wanted, total)
    kth = keys.topk(count, sorted=False).values.amin()
    tied = keys == kth
    room = count - (keys > kth).sum()
    wins = (keys > kth) | (tied & (tied.cumsum(0) <= room))
    # Move them to the front, without asking how many: `count` are. The others share one place.
    before = torch.nn.functional.pad(wins.cumsum(0), (1, 0))
    to = torch.where(wins, before[:-1], count)
    vals = torch.empty(count + 1, device=device).index_copy_(0, to, pool.vals)[:count]
    idx = pool.idx.new_empty(count + 1).index_copy_(0, to, pool.idx)[:count]
    codes = RaggedCodes(before[pool.ptr.long()].to(torch.int32), vals, idx, pool.F)
    threshold = torch.where(kth == NAN_KEY, float("nan"), kth.view(torch.float32))
    return codes, threshold


def cases() -> list[Case]:
    signature = {"b_ptr": "*fp32", "bound_ptr": "*i32"}
    signature |= {"n": "i32", "rank": "i32", "pre_stride": "i32"}
    listed = []
    for F, k, pre in ((24576, 32, "*bf16"), (73728, 64, "*bf16"), (131072, 1024, "*fp32")):
        stride, rank = sample_plan(F, k)
        groups, warps = groups_for(F // stride, rank)
        name, constants, aligned = f"bound F={F} k={k}", {"GROUPS": groups}, ("n", "pre_stride")
        pointers = {"pre_ptr": pre} | signature
        listed.append(Case(name, bound_kernel, pointers, constants, warps, aligned=aligned))
    return listed
