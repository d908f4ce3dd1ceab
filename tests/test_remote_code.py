"""Code that comes with a model runs only if the user asked for it with a flag."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saekit
from saekit.errors import DataError
from saekit.harvesting.models import load_model

ROOT = Path(saekit.__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("saekit", "kernels", "cli", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def loading_calls(tree: ast.AST) -> list[ast.Call]:
    return [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        and isinstance(n.func, ast.Attribute)
        and n.func.attr == "from_pretrained"
    ]


def test_every_from_pretrained_says_whether_code_may_run():
    found = 0
    for path in SOURCES:
        for call in loading_calls(ast.parse(path.read_text(encoding="utf-8"))):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert "trust_remote_code" in given, f"{path}:{call.lineno}"
            value = given["trust_remote_code"]
            passed_on = "trust_remote_code" in (
                getattr(value, "id", ""),
                getattr(value, "attr", ""),
            )
            assert passed_on or (isinstance(value, ast.Constant) and value.value is False), (
                f"{path}:{call.lineno}"
            )
            found += 1
    assert found >= 8


def test_from_pretrained_is_reached_by_no_other_way():
    """pipeline() and from_config() load too; getattr(x, "from_pretrained") would hide from the test
    above."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value == "from_pretrained":
                pytest.fail(f"{path}:{node.lineno}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                assert name not in ("from_config", "pipeline", "get_class_from_dynamic_module"), (
                    f"{path}:{node.lineno}"
                )


@pytest.fixture
def folder(tmp_path):
    """A model whose config class is in its folder and writes a file when it is imported."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps(
            {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModel": "code.Model"}}
        )
    )
    (model / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class Own(PretrainedConfig): model_type = 'own'\n"
        "class Model(PreTrainedModel): config_class = Own\n"
    )
    return model


def saekit_command(
    *arguments: str, cwd: Path, answer: str = "y\n" * 20
) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_MODULES_CACHE": str(cwd / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "saekit_cli", *arguments],
        cwd=cwd,
        env=environment,
        input=answer,
        capture_output=True,
        text=True,
    )


def test_a_yes_on_stdin_runs_nothing(folder, tmp_path):
    (tmp_path / "t.txt").write_text("a b c")
    done = saekit_command("harvest", "model", "t.txt", "out", "--hook", "blocks.0", cwd=tmp_path)
    assert (
        done.returncode == 3
        and "--trust-remote-code" in done.stderr
        and "[y/N]" not in done.stdout + done.stderr
    )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_the_flag_runs_it_and_a_config_file_cannot(folder, tmp_path):
    (tmp_path / "t.txt").write_text("a b c")
    (tmp_path / "c.toml").write_text("trust_remote_code = true\n")
    by_file = saekit_command(
        "harvest", "model", "t.txt", "out", "--hook", "blocks.0", "--config", "c.toml", cwd=tmp_path
    )
    assert (
        by_file.returncode == 3
        and "trust_remote_code is not a setting" in by_file.stderr
        and not (tmp_path / "ran").exists()
    )
    saekit_command(
        "harvest",
        "model",
        "t.txt",
        "out",
        "--hook",
        "blocks.0",
        "--trust-remote-code",
        cwd=tmp_path,
    )
    assert (tmp_path / "ran").exists()


def test_the_library_asks_for_the_argument(folder, tmp_path):
    with pytest.raises(DataError, match="needs code from its own folder") as raised:
        load_model(str(folder))
    assert "trust_remote_code=True" in raised.value.hint and not (tmp_path / "ran").exists()


def test_a_store_does_not_hold_the_flag(tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "harvesting"))
    import tiny

    (tmp_path / "t.txt").write_text("the cat sat on a mat")
    model = tiny.save("llama", tmp_path / "model")
    saekit.harvest(
        model,
        str(tmp_path / "t.txt"),
        str(tmp_path / "s"),
        hook="blocks.0",
        ctx=8,
        device="cpu",
        trust_remote_code=True,
    )
    texts = [
        path.read_text()
        for name in ("config.toml", "manifest.json")
        for path in [tmp_path / "s" / name]
    ]
    assert not any("trust_remote_code" in text for text in texts)
