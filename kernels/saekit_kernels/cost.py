"""Cost model: the least time that an operation or a training step can take on a device whose rates
are known.

An operation takes at least max(FLOPs / rate, bytes / bandwidth). Nothing here is measured: the
figures are what a kernel should be compared with, and they predict which of two implementations
should win before anyone has timed them.

Sources. H200: 989 TFLOP/s of dense bf16 and 4.8 TB/s are from NVIDIA's data sheet; good kernels
reach 80 % and 90 % of them, so 790 TFLOP/s and 4.3 TB/s are used. H100 (SXM): the same FLOP/s and
3.35 TB/s; 798 TFLOP/s and 3.0 TB/s were measured on one. 50 MB of L2 (NVIDIA, Hopper
architecture white paper); 5.5 TB/s from L2 is an assumption. Adam reads and writes p, m, v in fp32
(24 B per parameter) and writes the bf16 copy (2 B); unfused, the gradient is written and read and
autocast reads and writes the weight once more (38 B in all). torch.topk is counted as two reads of
B x F, which is optimistic.

Legend: B rows, D model width, F latents, k active latents per row. Times in ms, matrices in bf16
unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    flops: float  # bf16 matrix products, FLOP/s
    bandwidth: float  # device memory, B/s, reads and writes together
    l2_bytes: float
    l2_bandwidth: float


DEVICES = {
    "H100 HBM3": Device(flops=790e12, bandwidth=3.0e12, l2_bytes=50 * 2**20, l2_bandwidth=5.5e12),
    "H200": Device(flops=790e12, bandwidth=4.3e12, l2_bytes=50 * 2**20, l2_bandwidth=5.5e12),
}

ADAM_FUSED_BYTES = 26  # per parameter
ADAM_UNFUSED_BYTES = 38
BF16, FP32 = 2, 4
# A stored code is written (value, index: 8 B), read by the decoder (8), its gradient written (4),
# its position in the transpose written and read (12), and its value and gradient fetched from
# scattered addresses, a 32-byte sector each (64).
STORED_CODE_BYTES = 96
CROSSOVER = 1.4


def device_of(name: str) -> Device | None:
    """The rates of a device, by the name that torch.cuda.get_device_name gives ("NVIDIA H200",
    "NVIDIA H100 80GB HBM3"); None when they are not known."""
    words = set(name.upper().split())
    return next((device for key, device in DEVICES.items() if words >= {*key.split()}), None)


@dataclass(frozen=True)
class Work:
    """The least work of an operation: FLOPs of matrix products, bytes to and from device memory."""

    flops: float
    bytes: float

    def ms(self, device: Device) -> float:
        return 1e3 * max(self.flops / device.flops, self.bytes / device.bandwidth)


def encode(B: int, D: int, F: int, k: int) -> Work:
    """x W_enc^T to k codes per row; the pre-activations never leave the chip."""
    return Work(2 * B * D * F, BF16 * (B * D + F * D) + FP32 * F + 8 * B * k)


def select(B: int, D: int, F: int, k: int) -> Work:
    """Stored bf16 pre-activations to k codes per row, in one read."""
    return Work(0, BF16 * B * F + 8 * B * k)


def decode_mse(B: int, D: int, F: int, k: int) -> Work:
    """Reconstruction, loss, residual gradient and the gradient of each code. The second read of the
    k rows is cached."""
    return Work(4 * B * k * D, BF16 * B * k * D + 12 * B * k + BF16 * 2 * B * D)


def weight_grad(B: int, D: int, F: int, k: int) -> Work:
    """One weight gradient, fp32: a gather of B k rows and a write of F x D."""
    return Work(2 * B * k * D, BF16 * B * k * D + 12 * B * k + FP32 * F * D)


def feature_step(B: int, D: int, F: int, k: int) -> Work:
    """Both weight gradients and Adam of both matrices in one pass: two gathers, no gradients."""
    return Work(4 * B * k * D, 2 * (BF16 * B * k * D + 12 * B * k) + ADAM_FUSED_BYTES * 2 * F * D)


def sigmoid_encode(B: int, D: int, F: int, k: int) -> Work:
    """f = sigmoid(x W^T + b) and its column means: f is written once."""
    return Work(2 * B * D * F, BF16 * (B * D + F * D + B * F))


def sigmoid_dpre(B: int, D: int, F: int, k: int) -> Work:
    """(g W_dec^T + c) f (1 - f): f is read, the gradient written."""
    return Work(2 * B * D * F, BF16 * (B * D + F * D + 2 * B * F))


def sigmoid_pull(B: int, D: int, F: int, k: int) -> Work:
    """c f (1 - f): one read, one write."""
    return Work(0, BF16 * 2 * B * F)


def relu_forward(B: int, D: int, F: int, k: int) -> Work:
    """ReLU in place with row sums: one read, one write."""
    return Work(0, BF16 * 2 * B * F)


def relu_backward(B: int, D: int, F: int, k: int) -> Work:
    """The gradient through a ReLU, in place: two reads, one write."""
    return Work(0, BF16 * 3 * B * F)


OPERATIONS: dict[str, Callable[[int, int, int, int], Work]] = {
    function.__name__: function
    for function in (
        encode,
        select,
        decode_mse,
        weight_grad,
        feature_step,
        sigmoid_encode,
        sigmoid_dpre,
        sigmoid_pull,
        relu_forward,
        relu_backward,
    )
}


def floor_ms(op: str, B: int, D: int, F: int, k: int, device_name: str) -> float | None:
    """The least time of one operation; None for a device whose rates are not known. Raises
    ValueError for an unknown operation."""
    if op not in OPERATIONS:
        raise ValueError(f"unknown operation {op!r}; choose from {', '.join(OPERATIONS)}")
    device = device_of(device_name)
    return None if device is None else OPERATIONS[op](B, D, F, k).ms(device)


def dense_step_ms(
    B: int, D: int, F: int, device_name: str, passes: int = 10, adam_bytes: int = ADAM_UNFUSED_BYTES
) -> float | None:
    """A training step with dense codes: five GEMMs (encode, decode, dz, two weight gradients),
    `passes` bf16 passes over B x F that no GEMM hides, and Adam. 10 passes: eager torch with TopK;
    7: eager torch with ReLU and L1; 2 and 26 B: fused passes and fused Adam.
    """
    device = device_of(device_name)
    if device is None:
        return None
    gemm = 2 * B * D * F / device.flops
    return 1e3 * (5 * gemm + (passes * BF16 * B * F + adam_bytes * 2 * D * F) / device.bandwidth)


def topk_step_floor_ms(B: int, D: int, F: int, k: int, device_name: str) -> float | None:
    """A training step with k codes per row: the encoder GEMM, fused Adam, one gather each from
    W_dec, from x and from the residual gradient, and the traffic of the codes. Also the floor of a
    ReLU step with k active latents per row.

    x and the gradient are gathered from L2 when both fit in half of it; W_dec always counts as read
    from device memory.
    """
    device = device_of(device_name)
    if device is None:
        return None
    cached = 2 * BF16 * B * D <= device.l2_bytes / 2
    gather = BF16 * B * k * D
    seconds = 2 * B * D * F / device.flops
    seconds += (
        ADAM_FUSED_BYTES * 2 * D * F + gather + STORED_CODE_BYTES * B * k
    ) / device.bandwidth
    seconds += 2 * gather / (device.l2_bandwidth if cached else device.bandwidth)
    return 1e3 * seconds


def crossover_l0(F: int) -> float:
    """The mean number of active latents below which sparse kernels should beat fused dense ones, on
    a CUDA device that nobody has measured.

    L0* = c F / 184: a gather of k rows costs 184 k / F of the encoder GEMM (184 FLOP/B = 790e12 /
    4.3e12 on an H200; by their data sheets 140 on an A100, 260 on an H100) and saves a fixed number
    of GEMMs. The full model gives c = 1.36 at D = 4096 to 1.72 at D = 768; c = 1.4, near the lower
    end, stays dense a little too long rather than not long enough.
    """
    return CROSSOVER * F / 184
