"""A grid file says what it means, and what is wrong with it."""

from __future__ import annotations

import pytest

from saekit.errors import DataError, MissingError
from saekit.sweeps.grid import members_of, read_grid


def test_lists_make_all_combinations_and_tables_grids_of_their_own():
    members = members_of(
        {
            "rows": 1000,
            "seed": [0, 1],
            "runs": [{"sparsity": "topk", "k": [4, 8]}, {"sparsity": "l1", "target-l0": 4}],
        }
    )
    assert [m.name for m in members] == [
        "topk-k4-seed0", "topk-k8-seed0", "topk-k4-seed1", "topk-k8-seed1", "l1-target-l0-4-seed0",
        "l1-target-l0-4-seed1",
    ]  # fmt: skip
    assert [m.group for m in members] == [
        "topk-k4",
        "topk-k8",
        "topk-k4",
        "topk-k8",
        "l1-target-l0-4",
        "l1-target-l0-4",
    ]
    first, last = members[0].config, members[-1].config
    assert (first.rows, first.seed, first.order_seed, first.options) == (
        1000,
        0,
        0,
        {"sparsity": "topk", "k": 4},
    )
    assert last.options == {"sparsity": "l1", "target_l0": 4} and last.seed == 1


def test_values_that_differ_little_have_names_that_differ():
    assert [m.name for m in members_of({"lr": [0.001, 0.00100000001]})] == [
        "lr0.001",
        "lr0.00100000001",
    ]


def test_other_models_have_their_own_names():
    assert [m.name for m in members_of({"model": "vae", "seed": [0, 1]})] == [
        "vae-seed0",
        "vae-seed1",
    ]


def test_lists_are_read_as_config_files_write_them():
    members = members_of({"sparsity": "matryoshka-topk", "groups": "0.25,1", "k": 2})
    assert members[0].config.options["groups"] == (0.25, 1.0)


def test_a_grid_of_one():
    assert [m.name for m in members_of({"sparsity": "topk"})] == ["topk"]


def test_options_that_are_lists_themselves():
    groups = [[0.25, 1.0], [0.5, 1.0]]
    members = members_of({"sparsity": "matryoshka-topk", "groups": groups})
    assert [m.config.options["groups"] for m in members] == [(0.25, 1.0), (0.5, 1.0)]
    assert [m.name for m in members] == ["groups0.25+1", "groups0.5+1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k = [4,", "Invalid"),
        ("sparsity = 'topk'\nkk = 3", "kk"),
        ("sparsity = 'l1'\nk = 3", 'k does not apply to sparsity="l1"'),
        ("k = []", "k is an empty list"),
        ("k = [4, 4]", "appears twice"),
        ("target_store = 'a'", "target_store is not for a grid"),
        ("runs = 3", "runs is a list of tables"),
        ("sparsity = 'topp'", "topp"),
        ("rows = 'many'", "rows is 'many'; it must be a whole number"),
        ("seed = 0.5", "it must be a whole number"),
        ("model = 'dense'\nhidden = 'wide'", "not a list of numbers"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, text, said):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"sweep\.toml") as raised:
        read_grid(path)
    assert said in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingError):
        read_grid(tmp_path / "none.toml")
