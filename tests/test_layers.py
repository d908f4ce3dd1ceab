"""Imports point in one direction, importing saekit is cheap, and the wheel holds what it should."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages may import only from earlier rows; those of one row do not import each other.
LAYERS = [
    ["saekit_kernels"],
    ["saekit.errors", "saekit.typed"],
    ["saekit.display"],
    ["saekit.types", "saekit.options"],
    ["saekit.config", "saekit.device", "saekit.rows", "saekit.versions"],
    ["saekit.store", "saekit.models", "saekit.embedded"],
    ["saekit.interop"],
    ["saekit.harvesting", "saekit.training"],
    ["saekit.measures"],
    ["saekit.indexing"],
    ["saekit.intervention"],
    ["saekit.evaluation", "saekit.inspection", "saekit.estimator"],
    ["saekit.report", "saekit.exporting", "saekit.serving"],
    ["saekit.bench", "saekit.sweeps", "saekit.attacks"],
    ["saekit.progress"],
    ["saekit.public"],
    ["saekit_cli"],
]
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}
ONLY_IN = {
    "typer": {"saekit_cli"},
    "rich": {"saekit_cli"},
    "triton": {"saekit_kernels"},
    "transformers": {"saekit.harvesting", "saekit.embedded", "saekit.inspection"},
    "datasets": {"saekit.harvesting"},
    "starlette": {"saekit.serving"},
    "uvicorn": {"saekit.serving"},
}


def sources():
    for folder in ("saekit", "kernels/saekit_kernels", "cli/saekit_cli"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def part_of(module: str) -> str | None:
    head = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(head[:n])) in RANK), None)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[1:] if parts[0] in ("kernels", "cli") else parts)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", list(sources()), ids=module_name)
def test_imports_point_to_earlier_rows(path):
    mine = part_of(module_name(path))
    if mine is None:  # saekit/__init__.py names the public functions, lazily
        assert module_name(path) == "saekit.__init__"
        return
    for imported in imports(path):
        part = part_of(imported)
        if part is not None and part != mine:
            assert RANK[part] < RANK[mine], f"{mine} imports {part}"
            if mine == "saekit_kernels":
                pytest.fail(f"the kernels import {part}")
        owners = ONLY_IN.get(imported.split(".")[0])
        assert owners is None or mine in owners, f"{mine} imports {imported}"


def test_importing_saekit_is_quick_silent_and_brings_no_torch():
    code = (
        "import sys, time; t = time.process_time(); import saekit; print(time.process_time() - t,"
        " 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch_too = done.stdout.split()
    assert float(seconds) < 0.1 and torch_too == "False" and done.stderr == ""


def test_opening_a_checkpoint_brings_no_compiler():
    code = """
import dataclasses, sys
from saekit.models.catalog import build, restore
for name, options in (("sae", {}), ("dense", {"hidden": (8,)}), ("gan", {"spectral_norm": True})):
    model = build(name, 16, {"latents": 32, **options})
    restore(name, dataclasses.asdict(model.config), model.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_resolves_and_is_documented():
    import saekit

    for name in saekit.__all__:
        assert getattr(saekit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'harvets'"):
        _ = saekit.harvets


@pytest.mark.slow
def test_the_wheel_holds_three_packages_and_their_data(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"saekit", "saekit_kernels", "saekit_cli"}
    for data in (
        "saekit/py.typed",
        "saekit/inspection/assets/explorer.html",
        "saekit/report/assets/report.css",
        "saekit/serving/assets/serve.html",
        "saekit/embedded/digits_vit/model.safetensors",
        "saekit/embedded/openmoji/emoji.tsv",
        "saekit/embedded/openmoji/parts.tsv",
        "saekit/embedded/openmoji/NOTICE.md",
        "saekit/embedded/openmoji_vit/model.safetensors",
        "saekit/embedded/openmoji_vit/NOTICE.md",
    ):
        assert data in names
    size = sum(
        i.file_size
        for i in zipfile.ZipFile(next(tmp_path.glob("*.whl"))).infolist()
        if i.filename.endswith(".safetensors")
    )
    assert size < 5_000_000


def test_only_names_that_every_typer_has_are_imported_when_the_command_line_runs():
    """Where its errors and contexts live has changed three times."""
    for path in sorted((ROOT / "cli" / "saekit_cli").glob("*.py")):
        tree = ast.parse(path.read_text())
        for_types = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
        ]
        skipped = {id(node) for block in for_types for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
                module = node.module or ""
                assert (
                    module.partition(".")[0] not in ("typer", "click") or module == "typer.core"
                ), path


def test_every_error_of_a_command_line_is_caught():
    import typer
    from saekit_cli.app import CommandLineError, app
    from typer.testing import CliRunner

    assert issubclass(typer.BadParameter, CommandLineError)
    assert CommandLineError.__base__ is Exception
    for arguments in (["models", "--nonsense"], ["train"], ["train", "store", "--k", "two"]):
        error = CliRunner().invoke(app, arguments, standalone_mode=False).exception
        assert isinstance(error, CommandLineError), (arguments, error)
