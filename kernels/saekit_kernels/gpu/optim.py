"""The fused feature step: both weight gradients, projection, Adam, unit rows, low-precision copies
and idle counts in one program per latent.

The gradients live in registers and never reach memory: 26 bytes per parameter (p, m, v read and
written in fp32, one bf16 copy) instead of 38 with gradients and Adam separate; at d = 2304, F =
73,728 and 4.3 TB/s that is 2.05 ms instead of 3.0 (modeled: Adam at B = 4096 costs more than the
encoder GEMM). Two gathers, of x and of g in bf16, come on top. The program holds whole rows because
projection and norm need them, as two power-of-two blocks (`split_width`), so 2304 wastes nothing.
Both blocks are summed, projected and updated by the same code.

Latents with more than 256 entries get the sums of their other chunks from `chunk_partials`
(gpu/grad.py), in order, so that one latent that fires on every row does not become a serial tail.
The torch backend in saekit_kernels/optim.py is the specification.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import Codes
from saekit_kernels.gpu.decode import split_width
from saekit_kernels.gpu.grad import (
    ENTRIES,
    add_entries,
    check_pair,
    chunk_partials,
    listed_rows,
    pair_signature,
    plan_chunks,
)
from saekit_kernels.gpu.runtime import Case, jit, next_power_of_2, row_pointer
from saekit_kernels.gpu.transpose import check_positions
from saekit_kernels.optim import AdamSettings, FeatureState, check_step


def step_warps(d: int) -> int:
    """At most 16 columns per lane: two gradients, and the moments beside them in the epilogue."""
    return min(max(next_power_of_2(d) // 512, 1), 16)


@jit
def _adam(p, grad, m_ptr, v_ptr, at, mask, step_size, take1, beta2, take2, root2, eps):
    """The parameter after one step of Adam; the moments are written. take = 1 - beta, computed on
    the host in double precision."""
    m = tl.load(m_ptr + at, mask=mask, other=0.0)
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    m += take1 * (grad - m)
    v = beta2 * v + take2 * grad * grad
    tl.store(m_ptr + at, m, mask=mask)
    tl.store(v_ptr + at, v, mask=mask)
    return p - step_size * (m / (tl.sqrt(v) / root2 + eps))


@jit
def _feature_step(
    ptr_ptr, pos_ptr, of_ptr, first_ptr, coef1_ptr, rows1_ptr, stride1, coef2_ptr, rows2_ptr,
    stride2, partial1_ptr, partial2_ptr, partial_sum1_ptr, partial_sum2_ptr,
    W_enc_ptr, m_enc_ptr, v_enc_ptr, b_enc_ptr, m_b_ptr, v_b_ptr, W_dec_ptr, m_dec_ptr, v_dec_ptr,
    low_enc_ptr, low_dec_ptr, idle_ptr, K, d, B, length,
    step_size, take1, beta2, take2, root2, eps, norm_penalty,
    CHUNKED: tl.constexpr, UNIT: tl.constexpr, PENALTY: tl.constexpr, SPARSE: tl.constexpr,
    LOW_ENC: tl.constexpr, LOW_DEC: tl.constexpr, IDLE: tl.constexpr, LISTED: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0).to(tl.int64)
    start = tl.load(ptr_ptr + j)
    count = tl.load(ptr_ptr + j + 1) - start
    if IDLE:
        tl.store(idle_ptr + j, tl.where(count > 0, 0, tl.load(idle_ptr + j) + B))
    if SPARSE:
        if count == 0:
            return

    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head = head < d
    in_tail = tail < d
    end = start + tl.minimum(length, count)
    none = tl.zeros((ENTRIES,), tl.float32)
    zeros = tl.zeros((HEAD,), tl.float32)
    enc_head, dec_head, sum1, sum2 = add_entries(
        zeros, zeros, none, none, start, end, pos_ptr, of_ptr, K, coef1_ptr, rows1_ptr, stride1,
        coef2_ptr, rows2_ptr, stride2,
        head, in_head, True, LISTED, ENTRIES,
    )  # fmt: skip
    zeros = tl.zeros((TAIL,), tl.float32)
    enc_tail, dec_tail, _, _ = add_entries(
        zeros, zeros, none, none, start, end, pos_ptr, of_ptr, K, coef1_ptr, rows1_ptr, stride1,
        coef2_ptr, rows2_ptr, stride2,
        tail, in_tail, True, LISTED, ENTRIES,
    )  # fmt: skip
    db = tl.sum(sum1, axis=0)
    mass = tl.sum(sum2, axis=0)
    if CHUNKED:
        for slot in range(
            tl.load(first_ptr + j).to(tl.int64), tl.load(first_ptr + j + 1).to(tl.int64)
        ):
            enc_head += tl.load(partial1_ptr + slot * d + head, mask=in_head, other=0.0)
            enc_tail += tl.load(partial1_ptr + slot * d + tail, mask=in_tail, other=0.0)
            dec_head += tl.load(partial2_ptr + slot * d + head, mask=in_head, other=0.0)
            dec_tail += tl.load(partial2_ptr + slot * d + tail, mask=in_tail, other=0.0)
            db += tl.load(partial_sum1_ptr + slot)
            mass += tl.load(partial_sum2_ptr + slot)

    # Encoder: the bias, then the two blocks of the row.
    b = tl.load(b_enc_ptr + j)
    b = _adam(b, db, m_b_ptr, v_b_ptr, j, count >= 0, step_size, take1, beta2, take2, root2, eps)
    tl.store(b_enc_ptr + j, b)
    row = j * d
    w_head = tl.load(W_enc_ptr + row + head, mask=in_head, other=0.0)
    w_tail = tl.load(W_enc_ptr + row + tail, mask=in_tail, other=0.0)
    w_head = _adam(
        w_head,
        enc_head,
        m_enc_ptr,
        v_enc_ptr,
        row + head,
        in_head,
        step_size,
        take1,
        beta2,
        take2,
        root2,
        eps,
    )
    w_tail = _adam(
        w_tail,
        enc_tail,
        m_enc_ptr,
        v_enc_ptr,
        row + tail,
        in_tail,
        step_size,
        take1,
        beta2,
        take2,
        root2,
        eps,
    )
    tl.store(W_enc_ptr + row + head, w_head, mask=in_head)
    tl.store(W_enc_ptr + row + tail, w_tail, mask=in_tail)
    if LOW_ENC:
        tl.store(low_enc_ptr + row + head, w_head, mask=in_head)
        tl.store(low_enc_ptr + row + tail, w_tail, mask=in_tail)

    # Decoder: penalty and projection use the row before the step, the norm is restored after it.
    w_head = tl.load(W_dec_ptr + row + head, mask=in_head, other=0.0)
    w_tail = tl.load(W_dec_ptr + row + tail, mask=in_tail, other=0.0)
    if PENALTY:
        norm = tl.sqrt(tl.sum(w_head * w_head, axis=0) + tl.sum(w_tail * w_tail, axis=0))
        pull = norm_penalty * mass / tl.where(norm < 1e-30, 1e-30, norm)
        dec_head += pull * w_head
        dec_tail += pull * w_tail
    if UNIT:
        along = tl.sum(dec_head * w_head, axis=0) + tl.sum(dec_tail * w_tail, axis=0)
        dec_head -= along * w_head
        dec_tail -= along * w_tail
    w_head = _adam(
        w_head,
        dec_head,
        m_dec_ptr,
        v_dec_ptr,
        row + head,
        in_head,
        step_size,
        take1,
        beta2,
        take2,
        root2,
        eps,
    )
    w_tail = _adam(
        w_tail,
        dec_tail,
        m_dec_ptr,
        v_dec_ptr,
        row + tail,
        in_tail,
        step_size,
        take1,
        beta2,
        take2,
        root2,
        eps,
    )
    if UNIT:
        norm = tl.sqrt(tl.sum(w_head * w_head, axis=0) + tl.sum(w_tail * w_tail, axis=0))
        # A NaN norm stays NaN; tl.maximum would hide it.
        scale = 1.0 / tl.where(norm < 1e-12, 1e-12, norm)
        w_head *= scale
        w_tail *= scale
    tl.store(W_dec_ptr + row + head, w_head, mask=in_head)
    tl.store(W_dec_ptr + row + tail, w_tail, mask=in_tail)
    if LOW_DEC:
        tl.store(low_dec_ptr + row + head, w_head, mask=in_head)
        tl.store(low_dec_ptr + row + tail, w_tail, mask=in_tail)


def feature_step(
    state: FeatureState,
    codes: Codes,
    dvals_BK: torch.Tensor,
    x_BD: torch.Tensor,
    g_BD: torch.Tensor,
    settings: AdamSettings,
) -> None:
    """As saekit_kernels.optim.feature_step, in place. Parameters and moments must be fp32.

    Raises ValueError for other dtypes, shapes that do not fit, or B*K of 2^31 or more.
    """
    # Check.
    check_positions(codes)
    check_step(state, codes, dvals_BK, x_BD, g_BD)
    if any(t.dtype != torch.float32 for t in state.parameters_and_moments):
        raise ValueError("the fused step needs fp32 parameters and moments")
    if state.idle_F is not None and state.idle_F.dtype != torch.int64:
        raise ValueError(f"idle_F must be int64, got {state.idle_F.dtype}")
    B, d = x_BD.shape
    if B == 0:
        return
    # Further chunks of heavy latents.
    dvals, x = check_pair(codes, dvals_BK, x_BD)
    vals, g = check_pair(codes, codes.vals, g_BD)
    csc, chunks, rows = codes.transpose(), plan_chunks(codes), listed_rows(codes)
    partials = chunk_partials(codes, chunks, (dvals, x), (vals, g), rows)
    # The step. Missing copies and counts get another pointer, which is not written.
    s, warps = settings, step_warps(d)
    low_enc, low_dec = (
        master if low is None else low
        for master, low in ((state.W_enc, state.W_enc_low), (state.W_dec, state.W_dec_low))
    )
    idle = csc.ptr if state.idle_F is None else state.idle_F
    _feature_step[(codes.F,)](
        *(csc.ptr, csc.pos, csc.pos if rows is None else rows, chunks.first),
        *(dvals, x, x.stride(0), vals, g, g.stride(0)),
        *(partials.rows1, partials.rows2, partials.sum1, partials.sum2),
        *(state.W_enc, state.m_enc, state.v_enc, state.b_enc, state.m_b, state.v_b),
        *(state.W_dec, state.m_dec, state.v_dec),
        *(low_enc, low_dec, idle, row_pointer(codes)[1], d, B, chunks.length),
        *(s.lr / (1 - s.beta1**s.step), 1 - s.beta1, s.beta2, 1 - s.beta2),
        *((1 - s.beta2**s.step) ** 0.5, s.eps, s.norm_penalty),
        *(chunks.slots > 0, s.unit_decoder, s.norm_penalty != 0, s.sparse_rows),
        *(state.W_enc_low is not None, state.W_dec_low is not None, state.idle_F is not None),
        rows is not None,
        *(*split_width(d, 32 * warps), ENTRIES),
        num_warps=warps,
    )


def cases() -> list[Case]:
    pointers = lambda *names: {f"{name}_ptr": "*fp32" for name in names}
    weights = pointers("W_enc", "m_enc", "v_enc", "b_enc", "m_b", "v_b", "W_dec", "m_dec", "v_dec")
    partials = pointers("partial1", "partial2", "partial_sum1", "partial_sum2")
    extras = {
        "low_enc_ptr": "*bf16",
        "low_dec_ptr": "*bf16",
        "idle_ptr": "*i64",
        "K": "i32",
        "d": "i32",
        "B": "i32",
        "length": "i32",
    }
    scalars = dict.fromkeys(
        ("step_size", "take1", "beta2", "take2", "root2", "eps", "norm_penalty"), "fp32"
    )
    listed = []
    for d, rows, everything, sparse in (
        (768, "*bf16", False, False),
        (2304, "*bf16", True, False),
        (4096, "*bf16", True, False),
        (4096, "*fp32", True, False),
        (768, "*bf16", False, True),
        (4096, "*bf16", True, True),
    ):
        signature = pair_signature(rows, "*fp32") | partials | weights | extras | scalars
        head, tail = split_width(d, 32 * step_warps(d))
        constants = {"CHUNKED": True, "UNIT": True, "PENALTY": everything, "SPARSE": sparse}
        constants |= {
            "LOW_ENC": True,
            "LOW_DEC": True,
            "IDLE": everything,
            "LISTED": everything,
            "HEAD": head,
            "TAIL": tail,
            "ENTRIES": ENTRIES,
        }
        aligned = ("stride1", "stride2", "K", "d", "B", "length")
        name = f"feature_step_{d}_{rows[1:]}" + "_sparse" * sparse
        listed.append(
            Case(name, _feature_step, signature, constants, step_warps(d), aligned=aligned)
        )
    return listed
