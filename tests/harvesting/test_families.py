"""What `blocks.N`, `.attn` and `.mlp` give on many families, against sums of what plain hooks
see."""

from __future__ import annotations

import families as fam
import pytest
import torch

from saekit.errors import DataError
from saekit.harvesting.blocks import tower_path
from saekit.harvesting.hooks import block_list, capture, list_hooks, resolve_hook

ALL = fam.CAUSAL | fam.ENCODERS | fam.VISION
RTOL = 2e-5  # of the norm of what is added: fp32, a dozen operations


def inputs(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    if name in fam.VISION:
        return {"pixel_values": torch.randn(2, 3, 12, 12, generator=generator)}
    return {"input_ids": torch.randint(3, fam.VOCAB, (2, 9), generator=generator)}


def first(value):
    return (value[0] if isinstance(value, tuple) else value).detach().clone()


def seen(model, name: str, paths: list[str]) -> dict[str, torch.Tensor]:
    """'path:in' and 'path' of plain torch hooks."""
    states, handles = {}, []
    for path in paths:
        module = model.get_submodule(path)

        def before(_module, args, kwargs, path=path):
            states[f"{path}:in"] = first(args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(
            module.register_forward_hook(
                lambda _m, _a, output, path=path: states.__setitem__(path, first(output))
            )
        )
    with torch.no_grad():
        model.get_submodule(tower_path(model))(**inputs(name))
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("name", ALL)
def test_a_block_adds_attn_and_mlp_to_the_residual_stream(name):
    entry = ALL[name]
    model, index = fam.model_of(entry), 1
    block = f"{block_list(model)}.{index}"
    norms = [
        f"{block}.{norm}" if norm else None
        for norm in (entry[5] if name in fam.ENCODERS and entry[5] else ())
    ]
    parts = {part: path for part, path in zip(("attn", "mlp"), entry[3:5], strict=True) if path}
    hooks = [f"blocks.{index}", f"blocks.{index}:in", *(f"blocks.{index}.{part}" for part in parts)]
    with torch.no_grad(), capture(model, hooks) as states:
        model.get_submodule(tower_path(model))(**inputs(name))
    plain = seen(model, name, [block, *filter(None, norms)])
    assert torch.equal(states[f"blocks.{index}"], plain[block]) and torch.equal(
        states[f"blocks.{index}:in"], plain[f"{block}:in"]
    )
    start, end = plain[f"{block}:in"], plain[block]
    added = {part: states[f"blocks.{index}.{part}"] for part in parts}
    if norms:  # what is added before each norm
        middle = plain[norms[0]] if norms[0] else None
        wanted = {"attn": plain[f"{norms[0]}:in"] - start} if norms[0] else {}
        if middle is not None:
            wanted["mlp"] = plain[f"{norms[1]}:in"] - middle
    elif len(parts) == 2:
        added, wanted = {"both": sum(added.values())}, {"both": end - start}
    else:
        wanted = {}
    for part, value in wanted.items():
        assert (added[part] - value).norm() <= RTOL * value.norm(), part
    for part, path in zip(("attn", "mlp"), entry[3:5], strict=True):
        alias = f"blocks.{index}.{part}"
        if path:
            assert resolve_hook(model, alias) == f"{block}.{path}"
        else:
            with pytest.raises(DataError, match="is not available on"):
                resolve_hook(model, alias)


@pytest.mark.parametrize("name", ALL)
def test_what_is_listed_can_be_read_and_the_chain_holds(name):
    model = fam.model_of(ALL[name])
    rows = list_hooks(model)
    with torch.no_grad(), capture(model, [row.alias for row in rows] + ["blocks.1:in"]) as states:
        model.get_submodule(tower_path(model))(**inputs(name))
    within = (".attn.q", ".attn.k", ".attn.v", ".attn.z")  # of the width of the heads
    assert {states[row.alias].shape for row in rows if not row.alias.endswith(within)} == {
        states["blocks.0"].shape
    }
    assert torch.equal(states["blocks.0"], states["blocks.1:in"])
    assert [row.alias for row in rows if row.alias.count(".") == 1] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt_neox", "falcon", "dinov2", "granite", "bert", "bloom"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_proof_does_not_hang_on_the_dtype(name, dtype):
    entry = ALL[name]
    model = fam.model_of(entry).to(dtype)
    for part, path in zip(("attn", "mlp"), entry[3:5], strict=True):
        if path:
            assert resolve_hook(model, f"blocks.1.{part}") == f"{block_list(model)}.1.{path}"
        else:
            with pytest.raises(DataError, match="is not available on"):
                resolve_hook(model, f"blocks.1.{part}")
