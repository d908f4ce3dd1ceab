"""The code of the other tools on docs/migrating.md: every name exists and takes these arguments,
and what opens a dictionary does."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import saekit

PAGE = Path(__file__).parents[3] / "docs" / "migrating.md"
BLOCKS = re.findall(r"^```(\S+) (\S+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [(tool, text) for language, tool, text in BLOCKS if language == "python"]
WHY = "only in the environment of `make interop`"


def names_of(tree: ast.Module) -> dict[str, Any]:
    """What the import statements of a block import."""
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                top = alias.name.partition(".")[0]
                names[top] = importlib.import_module(top)
    return names


def resolved(node: ast.expr, names: dict[str, Any]) -> Any:
    """The imported object that an expression names; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolved(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize(("tool", "text"), PYTHON)
def test_every_call_takes_these_arguments(tool, text):
    pytest.importorskip(tool.replace("-", "_"), reason=WHY)
    tree = ast.parse(text)
    names = names_of(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    known = [(call, resolved(call.func, names)) for call in calls]
    assert any(target is not None for _, target in known)
    for call, target in known:
        if target is not None:
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(target).bind(*call.args, **keywords)
    # dictionary_learning takes the trainer's arguments as a dict
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            trainer = resolved(node.values[keys.index("trainer")], names)
            inspect.signature(trainer).bind(**dict.fromkeys(keys[1:]))


def test_the_command_of_sparsify():
    main = pytest.importorskip("sparsify.__main__", reason=WHY)
    from simple_parsing import parse

    settings = parse(main.RunConfig, args=shlex.join(command("sparsify", "python -m sparsify")))
    assert settings.hookpoints == ["layers.9"]
    assert (settings.sae.k, settings.ctx_len) == (32, 128)


def test_the_commands_of_saev():
    config = pytest.importorskip("saev.config", reason=WHY)
    tyro = pytest.importorskip("tyro", reason=WHY)
    shards = tyro.cli(config.Activations, args=command("saev", "python -m saev activations"))
    assert (shards.vit_layers, shards.dump_to) == ([10], "shards")
    run = tyro.cli(config.Train, args=command("saev", "python -m saev train"))
    assert (run.data.shard_root, run.sae.exp_factor) == ("shards", 32)


def command(tool: str, start: str) -> list[str]:
    """The arguments of the tool's command that begins so."""
    texts = [text for language, name, text in BLOCKS if (language, name) == ("sh", tool)]
    found = [text for text in texts if text.startswith(start)]
    return shlex.split(found[0].removeprefix(start))


@pytest.mark.parametrize("tool", ["sae-lens", "sparsify", "dictionary-learning"])
def test_what_opens_a_dictionary_opens_our_export(tool, tmp_path, monkeypatch):
    pytest.importorskip(tool.replace("-", "_"), reason=WHY)
    x = torch.randn(2_000, 16, generator=torch.Generator().manual_seed(0))
    saekit.train(x, tmp_path / "run", k=4, expansion=4, rows=4_000, seed=0)
    format = {"sae-lens": "saelens"}.get(tool, tool.replace("-", "_"))
    saekit.export_dictionary(tmp_path / "run", tmp_path / "out" / format, format=format)
    monkeypatch.chdir(tmp_path)
    opening = next(text for name, text in PYTHON if name == tool and f"out/{format}" in text)
    names: dict[str, Any] = {"x": x[:50]}
    with torch.no_grad():
        exec(opening, names)
        expected = saekit.load(tmp_path / "run")(x[:50]).x_hat
    assert float((names["x_hat"] - expected).abs().max() / expected.abs().max()) < 1e-6
