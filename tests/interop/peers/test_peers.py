"""The same files in the programs that wrote them and in saekit: the same codes and
reconstructions.

They need an environment of their own, which `make interop` makes; elsewhere these tests are
skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_dictionaries import D, F, K, dictionary_learning, old_saelens, saelens, sparsify

from saekit.training.checkpoints import load

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
# exp(r_mag) W_enc is rounded to float32 once
ROUNDED = {torch.float32: 1e-6, torch.float64: 1e-6}
WHY = "only in the environment of `make interop`"


def compare(
    path: Path, theirs: torch.nn.Module, code_of, x_hat_of, tolerances: dict = DTYPES
) -> None:
    """`code_of(x)` and `x_hat_of(x)` are computed by `theirs`, in the dtype of x."""
    ours = load(path)
    rows = torch.randn(300, D, generator=torch.Generator().manual_seed(4))
    for dtype, relative in tolerances.items():
        x, ours, theirs = rows.to(dtype), ours.to(dtype), theirs.to(dtype)
        with torch.no_grad():
            output, code, x_hat = ours(x), code_of(theirs, x), x_hat_of(theirs, x)
        assert code.any()
        for mine, other in ((output.code.to_dense(), code), (output.x_hat, x_hat)):
            assert float((mine - other).abs().max() / other.abs().max()) <= relative


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated", "before 6"])
def test_saelens(tmp_path, kind):
    package = pytest.importorskip("sae_lens", reason=WHY)
    path = tmp_path / "sae"
    (old_saelens(path) if kind == "before 6" else saelens(path, kind))
    sae = package.SAE.load_from_disk(path, device="cpu")

    def in_dtype(sae, x):  # it casts the input to the dtype of its config
        sae.dtype = x.dtype
        return sae

    compare(
        path,
        sae,
        lambda sae, x: in_dtype(sae, x).encode(x).to_dense(),
        lambda sae, x: in_dtype(sae, x)(x),
        ROUNDED if kind == "gated" else DTYPES,
    )


@pytest.mark.parametrize("settings", [{}, {"transcode": True}, {"transcode": True, "skip": True}])
def test_sparsify(tmp_path, settings):
    package = pytest.importorskip("sparsify", reason=WHY)
    path = sparsify(tmp_path / "layers.5.mlp", **settings)

    def code_of(coder, x):
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), F, dtype=x.dtype).scatter(1, indices, values)

    coder = package.SparseCoder.load_from_disk(path)
    assert coder.cfg.k == K
    compare(path, coder, code_of, lambda coder, x: coder(x).sae_out)


# class -> its module
CLASSES = {
    "AutoEncoder": "dictionary",
    "AutoEncoderNew": "dictionary",
    "GatedAutoEncoder": "dictionary",
    "JumpReluAutoEncoder": "dictionary",
    "AutoEncoderTopK": "trainers.top_k",
    "BatchTopKSAE": "trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(tmp_path, kind):
    module = pytest.importorskip(f"dictionary_learning.{CLASSES[kind]}", reason=WHY)
    path = dictionary_learning(tmp_path / "trainer_0", kind)
    # AutoEncoder: the codes of the file's own decoder norms
    as_written = {"normalize_decoder": False} if kind == "AutoEncoder" else {}
    dictionary = getattr(module, kind).from_pretrained(path / "ae.pt", **as_written)
    compare(
        path,
        dictionary,
        lambda dictionary, x: dictionary.encode(x),
        lambda dictionary, x: dictionary(x),
        ROUNDED if kind == "GatedAutoEncoder" else DTYPES,
    )
