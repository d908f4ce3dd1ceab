"""A trained SAE with another k, or only the first groups of its latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_runs import fvu, side, trained
from made_stores import write_store
from saekit_cli import app

import saekit
from saekit.errors import UsageError
from saekit.store.checkpoint import read_checkpoint, write_checkpoint

K, F = 8, 64
BY_ROW = ("topk", "hierarchical", "matryoshka-topk", "abs-topk", "archetypal", "temporal")
NESTED = ("matryoshka", "matryoshka-topk", "matryoshka-jumprelu")
OPTIONS = {
    "archetypal": {"archetypes": 64},
    "matryoshka-jumprelu": {"target_l0": 8.0},
    "l1": {},
    "gated": {},
    "kl-sigmoid": {},
}


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    # temporal needs the row before each row
    return write_store(tmp_path_factory.mktemp("acts") / "store", 2000, layout="sequence")


@pytest.fixture(scope="module")
def run(acts, tmp_path_factory):
    """A function: the checkpoint of a kind of SAE, or of another model; each is trained once."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def of(kind, model="sae"):
        if kind not in done:
            options = (
                {"latents": F, "sparsity": kind, **OPTIONS.get(kind, {"k": K})}
                if model == "sae"
                else {"latents": 4}
            )
            done[kind] = trained(acts, folder / kind, model, **options)
        return done[kind]

    return of


def weights(path):
    return {name: tensor.double() for name, tensor in read_checkpoint(path).tensors.items()}


def largest(path, x_BD, k, latents=None):
    """x_hat of the k largest values of each row, from the file's tensors, in fp64 and by a stable
    sort."""
    w = weights(path)
    pre = x_BD @ w["W_enc"][:latents].T + w["b_enc"][:latents]
    signed = Path(path).name == "abs-topk"
    order = (pre.abs() if signed else pre).argsort(dim=1, descending=True, stable=True)[:, :k]
    z = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order))
    return (z if signed else z.relu()) @ w["W_dec"][:latents] + w["b_dec"]


@pytest.mark.parametrize("kind", BY_ROW)
@pytest.mark.parametrize("k", [1, 3, K])
def test_the_code_is_the_k_largest_of_the_trained_weights(acts, run, kind, k):
    x = side(acts, "holdout")
    output = saekit.load(run(kind), k=k)(x.float())
    torch.testing.assert_close(
        output.x_hat.double(), largest(run(kind), x, k), rtol=1e-4, atol=1e-4
    )
    code = output.code if isinstance(output.code, torch.Tensor) else output.code.to_dense()
    assert code.count_nonzero(1).max() <= k


def test_evaluate_judges_every_checkpoint_at_every_k(acts, run):
    both = [run("topk"), run("hierarchical")]
    found = saekit.evaluate(both, acts, k=[2, K])
    assert [(e.checkpoint, e.k) for e in found] == [(path, k) for path in both for k in (2, K)]
    x = side(acts, "holdout")
    for e in found:
        assert e.rows == len(x) and e.metrics["l0"] <= e.k + 1e-12
        assert e.metrics["fvu"] == pytest.approx(fvu(x, largest(e.checkpoint, x, e.k)), rel=1e-4)
    plain = saekit.evaluate(both, acts)
    assert [e.k for e in plain] == [None, None] and [e.metrics for e in plain] == [
        found[1].metrics,
        found[3].metrics,
    ]


def test_hierarchical_is_better_than_topk_below_its_k(acts, run):
    topk, hierarchical = (
        saekit.evaluate(run(kind), acts, k=2)[0].metrics["fvu"] for kind in ("topk", "hierarchical")
    )
    assert hierarchical < topk


@pytest.mark.parametrize(
    "kind", ["batchtopk", "matryoshka", "matching-pursuit", "l1", "kl-sigmoid"]
)
def test_codes_that_are_not_the_largest_of_a_row_have_no_other_k(acts, run, kind):
    with pytest.raises(
        UsageError, match=rf"k=2: the code of .*{kind} is not the k largest"
    ) as refused:
        saekit.load(run(kind), k=2)
    assert "hierarchical" in refused.value.hint and "batchtopk" not in refused.value.hint
    with pytest.raises(UsageError, match="is not the k largest"):
        saekit.evaluate([run("topk"), run(kind)], acts, k=2)


def test_a_k_that_was_not_trained_and_other_models_are_refused(acts, run):
    for k in (0, -1, K + 1):
        with pytest.raises(UsageError, match=rf"k={k} must be between 1 and the k of .*topk, {K}"):
            saekit.load(run("topk"), k=k)
    with pytest.raises(UsageError, match=r"the code of .*pca is not"):
        saekit.load(run("pca", "pca"), k=2)
    with pytest.raises(UsageError, match="k needs at least one value"):
        saekit.evaluate(run("topk"), acts, k=[])


def nested_by_hand(path, kind, x_BD, latents):
    """x_hat of the first latents of a matryoshka. Thresholded codes do not depend on the latents
    that are left out."""
    if kind == "matryoshka-topk":
        return largest(path, x_BD, min(K, latents), latents)
    w = weights(path)
    pre = x_BD @ w["W_enc"].T + w["b_enc"]
    z = torch.where(pre > w["threshold"], pre, 0.0)
    return z[:, :latents] @ w["W_dec"][:latents] + w["b_dec"]


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("latents", [4, 8, 32, 64])
def test_the_first_groups_of_a_matryoshka_are_a_model(acts, run, kind, latents):
    x = side(acts, "holdout")
    sae = saekit.load(run(kind), latents=latents)
    assert sae.latents == sae.config.latents == latents == len(sae.W_enc) == len(sae.W_dec)
    assert sae.config.groups[-1] == 1.0 and [round(g * latents) for g in sae.config.groups] == [
        n for n in (4, 8, 16, 32, 64) if n <= latents
    ]
    torch.testing.assert_close(
        sae(x.float()).x_hat.double(),
        nested_by_hand(run(kind), kind, x, latents),
        rtol=1e-4,
        atol=1e-4,
    )


def test_first_latents_with_a_smaller_k(acts, run):
    x = side(acts, "holdout")
    path = run("matryoshka-topk")
    x_hat = saekit.load(path, latents=16, k=2)(x.float()).x_hat
    torch.testing.assert_close(x_hat.double(), largest(path, x, 2, 16), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"between 1 and the k of .*, 4"):
        saekit.load(path, latents=4, k=5)


def test_only_the_ends_of_the_groups_can_be_asked_for(run):
    for latents in (0, 5, 65):
        with pytest.raises(
            UsageError, match=f"latents={latents}: no group of .* ends there"
        ) as refused:
            saekit.load(run("matryoshka"), latents=latents)
        assert refused.value.hint == "latents=4 or 8 or 16 or 32 or 64"
    for path in (run("topk"), run("hierarchical"), run("pca", "pca")):
        with pytest.raises(UsageError, match="was not trained in nested groups") as refused:
            saekit.load(path, latents=4)
        assert "matryoshka-jumprelu" in refused.value.hint


def test_a_first_group_of_one_latent(tmp_path, run):
    # 1 / 49 * 49 is below 1 in floating point: a group that would seem to hold no latent.
    whole = read_checkpoint(run("matryoshka-topk"))
    config = whole.config | {"config": whole.config["config"] | {"groups": [1 / F, 49 / F, 1.0]}}
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run", config, whole.tensors)
    sae = saekit.load(tmp_path / "run", latents=49)
    assert [round(g * 49) for g in sae.config.groups] == [1, 49]


def test_the_command_line_has_a_line_for_each_k(acts, run, capsys):
    def evaluate(*more):
        status = app._status(
            ["evaluate", run("topk"), run("hierarchical"), "--store", str(acts), *more]
        )
        return status, *capsys.readouterr()

    status, out, _ = evaluate("--k", "2, 4,8", "--json")
    results = json.loads(out)
    assert status == 0 and [r["k"] for r in results] == [2, 4, 8, 2, 4, 8]
    lines = evaluate("--k", "2,4,8")[1].splitlines()
    column = lines[0].split().index("k") + 1  # `sae topk` is one cell of two words
    assert len(lines) == 7 and [line.split()[column] for line in lines[1:]] == ["2", "4", "8"] * 2
    assert f"{results[1]['metrics']['fvu']:.4f}" in lines[2]
    assert [r["k"] for r in json.loads(evaluate("--json")[1])] == [None, None]
    assert " k " not in evaluate()[1].splitlines()[0]
    for wrong in ("9", "0", "two", ""):
        status, _, err = evaluate("--k", wrong)
        assert status == 2 and err.startswith("error  --k")
    status, _, err = evaluate("--k", "2,8", "--max-fvu", "0.0001")
    assert status == 7 and "topk with k 2 is above --max-fvu" in err
