"""What a dtype cost, in units of each dimension's spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saekit
from saekit.errors import NumericsError
from saekit.store.health import choose_dtype, rounding_of
from saekit.store.reader import open_store


def harvest(tmp_path, x, **options):
    np.save(tmp_path / "x.npy", x)
    said = []
    saekit.harvest(
        "raw:array",
        str(tmp_path / "x.npy"),
        tmp_path / "s",
        progress=lambda p: said.append(p.message),
        **options,
    )
    return open_store(tmp_path / "s"), [line for line in said if line]


def by_hand(x: np.ndarray, dtype: str) -> np.ndarray:
    """RMS rounding error over the standard deviation, from the definitions, in fp64."""
    wide = torch.from_numpy(x).double()
    stored = torch.from_numpy(x).to(getattr(torch, dtype)).double()
    return ((stored - wide).square().mean(0).sqrt() / wide.std(0, correction=0)).numpy()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_is_told_in_units_of_the_spread_whatever_the_shards(tmp_path, monkeypatch, dtype):
    from saekit.store.writer import StoreWriter

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 6)) * [1, 1, 5, 1e-3, 2, 0] + [0, 3000, -700, 0, 1e3, 12.3]
    opened = StoreWriter.__init__
    monkeypatch.setattr(
        StoreWriter,
        "__init__",
        lambda self, *a, **k: opened(self, *a, **{**k, "shard_bytes": 3000}),
    )
    store, said = harvest(tmp_path, x, dtype=dtype, batch=100)
    assert len(store.shards) > 5
    with np.errstate(divide="ignore"):
        expected = by_hand(x, dtype)
    np.testing.assert_allclose(store.stats["rounding"][:5], expected[:5], rtol=1e-6)
    assert store.stats["rounding"][5] == 0, "a constant dimension has no spread to lose"
    assert store.stats["rounding_max"] == max(store.stats["rounding"])
    assert store.stats["rounding_dimensions"] == int((expected[:5] > 0.05).sum())
    if dtype == "float32":
        assert not said
    else:
        (line,) = said
        assert (
            f"{dtype} rounds {store.stats['rounding_dimensions']} of 6 dimensions by more than 5 %"
            in line
        )
        assert "(dimension 1: " in line and 'dtype="float32" and overwrite=True' in line


def test_an_offset_of_3000_costs_what_the_spacing_of_the_dtype_says():
    """Between 2,048 and 4,096 values of float16 are 2 apart and of bfloat16 16; errors uniform over
    a step are step / sqrt(12). In bfloat16 the spread is less than a step: all go to 2,992 or
    3,008, 8 away."""
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)) + 3000
    assert rounding_of(x, "float16")["rounding_max"] == pytest.approx(2 / 12**0.5, rel=0.12)
    assert rounding_of(x, "bfloat16")["rounding_max"] == pytest.approx(7.3, rel=0.1)


def test_values_that_vanish_are_counted(tmp_path):
    x = np.array([[1e-8, 1.0], [2e-8, 0.0], [1e-3, 2.0], [5e-8, 0.5]] * 10)
    store, (line,) = harvest(tmp_path, x, dtype="float16")
    # 2**-25 = 2.98e-8 and less becomes 0; the zero that was one does not count.
    assert store.stats["underflow_share"] == 20 / 80
    assert "25% of the values became 0" in line


def test_rows_that_come_in_the_stored_dtype_lose_nothing(tmp_path):
    store, said = harvest(
        tmp_path, np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    )
    assert not said and store.stats.get("rounding_max", 0) < 1e-6


@pytest.mark.parametrize(
    "scale,offset,chosen",
    [
        (1, 0, "float16"),
        (1, 100, "float16"),
        (1, 3000, "float32"),
        (1e4, 0, "bfloat16"),
        (1e-8, 0, "bfloat16"),
        (1e37, 0, "float32"),
    ],
)
def test_auto_takes_the_smallest_dtype_that_costs_little(tmp_path, scale, offset, chosen):
    x = np.random.default_rng(1).normal(size=(500, 5)) * scale + offset
    store, said = harvest(tmp_path, x, dtype="auto")
    assert store.spec.dtype == chosen
    assert said[0].startswith(f'dtype="auto": {chosen}') and store.stats["dtype_reason"] in said[0]
    assert store.stats["rounding_max"] <= 0.05
    with open(tmp_path / "s" / "config.toml") as file:
        assert f'dtype = "{chosen}"' in file.read()


def test_auto_on_a_model_is_the_harvest_of_the_dtype_it_chose(tmp_path):
    for dtype in ("auto", "float16"):
        saekit.harvest(
            "embedded:digits-vit",
            "embedded:digits",
            tmp_path / dtype,
            hook="blocks.1",
            rows=640,
            dtype=dtype,
            device="cpu",
        )
    auto, plain = open_store(tmp_path / "auto"), open_store(tmp_path / "float16")
    assert (
        auto.manifest.content == plain.manifest.content
        and "float16, whose rounding" in auto.stats["dtype_reason"]
    )


def test_an_overflow_is_told_with_a_dtype_that_holds_the_values(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    for offset, hint in (
        (0.0, 'dtype="bfloat16" or "float32", with overwrite=True'),
        (3000.0, 'dtype="float32" and overwrite=True (bfloat16 would round by'),
    ):
        values = x + np.float32(offset)
        values[7, 0] = 1e5
        values[:, 0] *= 10
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(NumericsError, match="overflows float16") as raised:
            saekit.harvest(
                "raw:array", str(tmp_path / "x.npy"), tmp_path / f"s{offset}", dtype="float16"
            )
        assert raised.value.hint.startswith(hint)


def test_a_choice_names_what_speaks_against_the_others():
    dtype, why = choose_dtype(
        torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 5000
    )
    assert (
        dtype == "float32" and "float16 may overflow" in why and "bfloat16 would cost up to" in why
    )
