"""The cost model against the figures it was first worked out with by hand, and against limits that
must hold."""

from __future__ import annotations

import pytest
from saekit_kernels import cost

H200 = "NVIDIA H200"

# D, F, B, dense step, sparse floor for k = 32, 64, 256; ms
TABLE = [
    (768, 24576, 4096, 1.78, (0.55, 0.67, 1.42)),
    (768, 24576, 8192, 3.23, (0.87, 1.12, 2.60)),
    (768, 24576, 32768, 11.9, (2.95, 4.10, 11.0)),
    (2304, 73728, 4096, 13.2, (4.2, 4.7, 7.2)),
    (2304, 73728, 8192, 23.4, (6.4, 7.3, 12.4)),
    (2304, 73728, 32768, 84.7, (19.5, 23.0, 43.4)),
    (4096, 131072, 4096, 39.8, (12.8, 13.6, 18.1)),
    (4096, 131072, 8192, 70.2, (19.1, 20.6, 29.7)),
    (4096, 131072, 32768, 252, (57.1, 63.1, 99.2)),
]


@pytest.mark.parametrize(("D", "F", "B", "dense", "sparse"), TABLE)
def test_steps_reproduce_the_table(D, F, B, dense, sparse):
    assert cost.dense_step_ms(B, D, F, H200) == pytest.approx(dense, rel=0.03)
    for k, expected in zip((32, 64, 256), sparse):
        assert cost.topk_step_floor_ms(B, D, F, k, H200) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("D", "F", "eager", "fused"),
    [(768, 24576, 2.95, 2.37), (2304, 73728, 22.6, 20.2), (4096, 131072, 68.7, 63.2)],
)
def test_dense_relu_steps(D, F, eager, fused):
    assert cost.dense_step_ms(8192, D, F, H200, passes=7) == pytest.approx(eager, rel=0.01)
    assert cost.dense_step_ms(
        8192, D, F, H200, passes=2, adam_bytes=cost.ADAM_FUSED_BYTES
    ) == pytest.approx(fused, rel=0.01)


@pytest.mark.parametrize(
    ("D", "F", "crossover"), [(768, 24576, 230), (2304, 73728, 550), (4096, 131072, 970)]
)
def test_crossover_is_where_the_two_steps_meet_and_the_estimate_errs_to_dense(D, F, crossover):
    def margin(k):
        return cost.dense_step_ms(
            8192, D, F, H200, passes=2, adam_bytes=26
        ) - cost.topk_step_floor_ms(8192, D, F, k, H200)

    assert margin(0.95 * crossover) > 0 > margin(1.05 * crossover)
    assert 0.8 * crossover < cost.crossover_l0(F) < 1.04 * crossover


def test_encoder_gemm_is_the_unit():
    """2 B F D FLOPs at 790 TFLOP/s; a bf16 pass over B x F is 184 / D of it."""
    gemm = cost.floor_ms("encode", 8192, 768, 24576, 32, H200)
    assert gemm == pytest.approx(2 * 8192 * 768 * 24576 / 790e12 * 1e3)
    assert cost.floor_ms("relu_forward", 8192, 768, 24576, 32, H200) / gemm == pytest.approx(
        2 * 184 / 768, rel=0.01
    )
    assert cost.floor_ms("select", 8192, 768, 24576, 32, H200) / gemm == pytest.approx(
        184 / 768, rel=0.02
    )
    # the product hides the write of f
    assert cost.floor_ms("sigmoid_encode", 8192, 768, 24576, 32, H200) == gemm


def test_small_batches_are_bound_by_the_weights():
    """One row: W_enc is read once, 2 F D bytes at 4.3 TB/s."""
    assert cost.floor_ms("encode", 1, 4096, 131072, 32, H200) == pytest.approx(
        2 * 4096 * 131072 / 4.3e12 * 1e3, rel=1e-3
    )


def test_fused_feature_step_is_adam_and_two_gathers():
    B, D, F, k = 4096, 2304, 73728, 32
    adam, gather = 26 * 2 * D * F / 4.3e12 * 1e3, 2 * B * k * D / 4.3e12 * 1e3
    assert cost.floor_ms("feature_step", B, D, F, k, H200) == pytest.approx(
        adam + 2 * gather, rel=0.01
    )
    assert cost.floor_ms("weight_grad", B, D, F, k, H200) == pytest.approx(
        gather + 4 * D * F / 4.3e12 * 1e3, rel=0.01
    )
    # and x, g once
    assert cost.floor_ms("decode_mse", B, D, F, k, H200) == pytest.approx(
        gather * (1 + 2 / k), rel=0.01
    )


def test_no_part_takes_longer_than_the_step():
    for D, F, B, _, _ in TABLE:
        parts = [cost.floor_ms(op, B, D, F, 32, H200) for op in ("encode", "feature_step")]
        assert max(parts) < cost.topk_step_floor_ms(B, D, F, 32, H200)


def test_every_operation_grows_with_the_batch():
    for op in cost.OPERATIONS:
        assert (
            0
            < cost.floor_ms(op, 1024, 768, 24576, 32, H200)
            < cost.floor_ms(op, 4096, 768, 24576, 32, H200)
        )


def test_an_h100_has_the_products_of_an_h200_and_less_bandwidth():
    name, B, D, F, k = "NVIDIA H100 80GB HBM3", 8192, 768, 24576, 32
    assert cost.floor_ms("encode", B, D, F, k, name) == cost.floor_ms("encode", B, D, F, k, H200)
    slower = cost.floor_ms("relu_forward", B, D, F, k, name)
    assert slower == pytest.approx(4.3 / 3.0 * cost.floor_ms("relu_forward", B, D, F, k, H200))


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-80GB", "cpu", "", "NVIDIA GH200 480GB", "NVIDIA H20", "NVIDIA H100 PCIe"],
)
def test_unknown_devices_have_no_floor(name):
    assert cost.floor_ms("encode", 8192, 768, 24576, 32, name) is None
    assert cost.dense_step_ms(8192, 768, 24576, name) is None
    assert cost.topk_step_floor_ms(8192, 768, 24576, 32, name) is None


def test_unknown_operation_is_refused_on_any_device():
    with pytest.raises(ValueError, match="encode"):
        cost.floor_ms("encoder", 1, 1, 1, 1, "cpu")
