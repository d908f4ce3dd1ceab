"""The command that a page shows: as short as it was typed, the same wherever the folder lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from saekit.inspection.page_command import page_command


@pytest.fixture
def folder(tmp_path):
    for name in ("project/runs/a", "project/acts", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_paths_below_the_working_folder_are_from_there(folder, monkeypatch):
    monkeypatch.chdir(folder / "project")
    expected = "saekit inspect runs/a --out page --top 20 --store acts", "project"
    assert page_command("runs/a", ["acts"], Path("page"), 20, False) == expected
    absolute = folder / "project"
    found = page_command(f"{absolute}/runs/a", [f"{absolute}/acts"], absolute / "page", 20, False)
    assert found == expected


def test_other_paths_are_from_the_deepest_folder_that_holds_them(folder, monkeypatch):
    monkeypatch.chdir(folder / "elsewhere")
    command, base = page_command(
        "../project/runs/a", [f"{folder}/project/acts"], Path("../project/a page"), 5, True
    )
    assert base == "project" and str(folder) not in command
    assert command == ("saekit inspect runs/a --out 'a page' --top 5 --any-store --store acts")


def test_a_name_on_the_hub_stays_and_only_the_root_in_common_is_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder / "project")
    command, base = page_command("owner/name", ["acts"], Path("page"), 20, False)
    assert command == "saekit inspect owner/name --out page --top 20 --store acts"
    assert base == "project"
    given = page_command("runs/a", ["acts"], Path("/nowhere/page"), 20, False)
    assert given == ("saekit inspect runs/a --out /nowhere/page --top 20 --store acts", "")
