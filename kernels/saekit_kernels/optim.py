"""One optimizer step of encoder and decoder, from the codes: gradients, projection, Adam, unit
rows, low-precision copies.

`torch.optim.Adam` (Kingma and Ba 2015, without weight decay) on the gradients of sparse codes.
Written as one operation because on a device the two gradients need never exist: Adam by itself
moves 26 bytes per parameter, with gradients in memory it is 38. The torch backend below is the
specification of the fused kernel (saekit_kernels.gpu.optim) and runs on any device and in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnF

from saekit_kernels.codes import Codes
from saekit_kernels.grad import sparse_column_sum, sparse_weight_grad


@dataclass
class FeatureState:
    """The state of the latents: parameters, Adam's moments, copies for the matrix units, and how
    long each latent has been silent.

    Matrices are (F,D) and contiguous, vectors (F,); fp32 with Triton, any precision with torch. The
    step writes all of them.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    m_enc: torch.Tensor
    v_enc: torch.Tensor
    m_b: torch.Tensor
    v_b: torch.Tensor
    m_dec: torch.Tensor
    v_dec: torch.Tensor
    W_enc_low: torch.Tensor | None = None  # bf16 or fp16 copies, rewritten by every step
    W_dec_low: torch.Tensor | None = None
    idle_F: torch.Tensor | None = None  # int64: rows since the latent last fired

    @property
    def parameters_and_moments(self) -> tuple[torch.Tensor, ...]:
        return (
            self.W_enc,
            self.b_enc,
            self.W_dec,
            self.m_enc,
            self.v_enc,
            self.m_b,
            self.v_b,
            self.m_dec,
            self.v_dec,
        )


@dataclass(frozen=True)
class AdamSettings:
    """`step` counts from 1. `norm_penalty` p adds p * sum_bj vals_bj ||w_j|| to the loss: for a
    mean over rows, p = coefficient / B.

    `sparse_rows`: only latents that fired take a step, as in torch.optim.SparseAdam; the moments of
    the others do not change. This changes training: a latent that falls silent stops at once
    instead of coasting on its momentum.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int
    unit_decoder: bool
    norm_penalty: float = 0.0
    sparse_rows: bool = False

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step counts from 1, got {self.step}")


def check_step(
    state: FeatureState,
    codes: Codes,
    dvals_BK: torch.Tensor,
    x_BD: torch.Tensor,
    g_BD: torch.Tensor,
) -> None:
    """Raises ValueError when a shape does not fit or a tensor written in place is not
    contiguous."""
    F, d = state.W_enc.shape
    if codes.F != F:
        raise ValueError(f"the codes have {codes.F} latents, the weights {F}")
    if dvals_BK.shape != codes.vals.shape:
        raise ValueError(
            f"dvals must have the shape of the codes, {tuple(codes.vals.shape)}, got"
            f" {tuple(dvals_BK.shape)}"
        )
    for name, rows in (("x", x_BD), ("g", g_BD)):
        if rows.shape != (len(codes), d):
            raise ValueError(f"{name} must have shape ({len(codes)}, {d}), got {tuple(rows.shape)}")
    for name, value in vars(state).items():
        if value is None:
            continue
        shape = (F,) if name in ("b_enc", "m_b", "v_b", "idle_F") else (F, d)
        if value.shape != shape or not value.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous with shape {shape}, got {tuple(value.shape)}"
            )


def feature_step(
    state: FeatureState,
    codes: Codes,
    dvals_BK: torch.Tensor,
    x_BD: torch.Tensor,
    g_BD: torch.Tensor,
    settings: AdamSettings,
    backend: str = "torch",
) -> None:
    """One step of W_enc, b_enc and W_dec, in place. An empty batch changes nothing.

    dW_enc = sum dvals x, db_enc = sum dvals, dW_dec = sum vals g + p (sum vals) w / ||w||; the part
    of dW_dec along the row is dropped when rows are kept at unit norm. Raises ValueError for shapes
    that do not fit and for an unknown backend.
    """
    if backend == "triton":
        from saekit_kernels.gpu import optim as gpu

        return gpu.feature_step(state, codes, dvals_BK, x_BD, g_BD, settings)
    if backend != "torch":
        raise ValueError(f"backend {backend}: choose triton, torch")
    check_step(state, codes, dvals_BK, x_BD, g_BD)
    if len(codes) == 0:
        return None
    with torch.no_grad():
        # Gradients.
        fired = codes.transpose().counts() > 0
        x = x_BD.to(state.W_enc.dtype)
        dW_enc, db_enc = sparse_weight_grad(codes, dvals_BK, x), sparse_column_sum(codes, dvals_BK)
        dW_dec = decoder_gradient(state.W_dec, codes, g_BD, settings)
        # Adam, then the decoder's rows back to unit norm.
        steps = fired if settings.sparse_rows else torch.ones_like(fired)
        _adam(state.W_enc, dW_enc, state.m_enc, state.v_enc, steps, settings)
        _adam(state.b_enc, db_enc, state.m_b, state.v_b, steps, settings)
        _adam(state.W_dec, dW_dec, state.m_dec, state.v_dec, steps, settings)
        if settings.unit_decoder:
            state.W_dec.copy_(
                torch.where(steps[:, None], nnF.normalize(state.W_dec, dim=1), state.W_dec)
            )
        # Low-precision copies and idle counts.
        if state.W_enc_low is not None:
            state.W_enc_low.copy_(state.W_enc)
        if state.W_dec_low is not None:
            state.W_dec_low.copy_(state.W_dec)
        if state.idle_F is not None:
            state.idle_F.add_(len(codes)).masked_fill_(fired, 0)
    return None


def decoder_gradient(
    W_dec_FD: torch.Tensor, codes: Codes, g_BD: torch.Tensor, settings: AdamSettings
) -> torch.Tensor:
    """sum vals g, with the norm penalty and the projection that `settings` select."""
    dW = sparse_weight_grad(codes, codes.vals, g_BD.to(W_dec_FD.dtype))
    if settings.norm_penalty:
        # normalize(0) is 0, which is also the subgradient that autograd uses for the norm at 0.
        mass_F = sparse_column_sum(codes, codes.vals)
        dW += (settings.norm_penalty * mass_F)[:, None] * nnF.normalize(W_dec_FD, dim=1, eps=1e-30)
    if settings.unit_decoder:
        dW -= (dW * W_dec_FD).sum(1, keepdim=True) * W_dec_FD
    return dW


def _adam(
    p: torch.Tensor,
    grad: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    steps_F: torch.Tensor,
    s: AdamSettings,
) -> None:
    """As torch.optim.Adam, for the rows in `steps_F`."""
    steps = steps_F if p.ndim == 1 else steps_F[:, None]
    m.copy_(torch.where(steps, m + (1 - s.beta1) * (grad - m), m))
    v.copy_(torch.where(steps, s.beta2 * v + (1 - s.beta2) * grad.square(), v))
    denominator = v.sqrt() / (1 - s.beta2**s.step) ** 0.5 + s.eps
    update = s.lr / (1 - s.beta1**s.step) * (m / denominator)
    p.copy_(torch.where(steps, p - update, p))
