"""Options are declared once: what is read from the declarations, and what follows from them."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from command import saekit as command
from made_stores import write_store
from saekit_cli import train as train_verb
from saekit_cli.app import VERBS
from saekit_cli.command import build, options

import saekit
from saekit.errors import UsageError
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.keywords import HarvestKeywords
from saekit.models.catalog import CATALOG, every_option, model_options
from saekit.models.sparsity import VARIANTS
from saekit.options import REQUIRED, Doc, check, check_values, options_of
from saekit.training.config import TrainConfig
from saekit.training.keywords import TrainKeywords


@dataclass(frozen=True)
class Base:
    d_in: int
    size: Annotated[int | None, Doc("Size.")] = None
    kind: Annotated[Literal["a", "b"], Doc("Kind.")] = "a"
    shares: Annotated[tuple[float, ...], Doc("Shares.")] = (0.5, 1.0)


@dataclass(frozen=True)
class Derived(Base):
    kind: str = "b"
    size: Annotated[int | None, Doc("Its own size.")] = 3


def test_only_documented_fields_are_options():
    found = options_of(Base)
    assert list(found) == ["size", "kind", "shares"]
    assert found["size"].types == (int,) and found["size"].default is None
    assert found["kind"].choices == ("a", "b") and found["size"].choices == ()
    assert found["shares"].item is float and found["kind"].item is None
    assert found["kind"].flag == "--kind"


def test_a_new_default_keeps_type_and_text_and_a_new_text_replaces_it():
    found = options_of(Derived)
    assert (found["kind"].default, found["kind"].choices, found["kind"].doc.text) == (
        "b",
        ("a", "b"),
        "Kind.",
    )
    assert (found["size"].default, found["size"].doc.text) == (3, "Its own size.")


def test_functions_declare_options_too():
    def verb(path: Annotated[str | Path, Doc("A path.", positional=True)], other: int = 0): ...

    (option,) = options_of(verb).values()
    assert option.default is REQUIRED and option.types == (str, Path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "c"}, 'kind="c": choose a, b'),
        ({"kind": None}, "kind is None; it must be"),
        ({"size": "x"}, "size is 'x'; it must be a whole number or null"),
        ({"size": True}, "size is True; it must be"),
        ({"shares": (0.5, "x")}, "shares"),
    ],
)
def test_values_of_another_type_or_none_of_the_choices_are_refused(values, said):
    with pytest.raises(UsageError) as raised:
        check_values(Base, values)
    assert str(raised.value).startswith(said)


def test_values_that_fit_pass():
    check(Base(4))
    check(Base(4, size=2, kind="b", shares=(0.1,)))


def test_none_is_the_default_of_every_option():
    config = TrainConfig.from_flat({"k": None, "schedule": None, "clip": None})
    assert config == TrainConfig()
    changed = TrainConfig(options={"k": 8}, clip=1.0).with_options({"k": None, "clip": None})
    assert changed == TrainConfig()


def test_the_later_of_expansion_and_latents_counts_and_both_at_once_are_refused():
    config = TrainConfig(options={"expansion": 4}).with_options({"latents": 64})
    assert config.options == {"latents": 64}
    with pytest.raises(UsageError, match="both set the number of latents"):
        TrainConfig.from_flat({"expansion": 4, "latents": 64})


# -- what follows


def test_a_flag_means_the_same_for_every_model_that_has_it():
    kinds: dict[str, set] = {}
    owners = [model_options("sae", variant) for variant in VARIANTS]
    owners += [model_options(name) for name in CATALOG if name != "sae"]
    for owner in owners:
        for name, option in owner.items():
            kinds.setdefault(name, set()).add((option.item, option.types == (bool,), option.flag))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert not kinds.keys() & options_of(TrainConfig).keys()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_option_has_a_text_and_a_flag_of_its_own(verb):
    found = options(verb, [])
    flags = [option.flag for option in found.values() if not option.doc.positional]
    assert len(set(flags)) == len(flags)
    assert all(option.doc.text.strip() for option in found.values())
    parameters = {parameter.name for parameter in build(verb, []).params}
    assert parameters == {*found, "help_all"}


def test_help_shows_the_options_of_the_chosen_model_and_hides_the_others(tmp_path, capsys):
    def shown(*arguments: str) -> set[str]:
        found = train_verb.takes(list(arguments))
        return {name for name, option in found.items() if not option.doc.hidden}

    of_models = set(every_option())
    assert shown() & of_models == set(model_options("sae", "topk"))
    for arguments in (["--model", "vae"], ["--model=vae"]):
        assert shown(*arguments) & of_models == set(model_options("vae"))
    assert shown("--sparsity", "l1") & of_models == set(model_options("sae", "l1"))
    (tmp_path / "run.toml").write_text('model = "pca"\n')
    assert shown("--config", str(tmp_path / "run.toml")) & of_models == {"latents"}
    _, page, _ = command(capsys, "train", "--model", "vae", "--help")
    assert "Model: vae:" in page and "--beta X" in page and "--k N" not in page


def test_a_flag_of_another_model_is_refused_by_name(tmp_path, capsys):
    store = write_store(tmp_path / "acts", 300)
    status, _, err = command(capsys, "train", store, tmp_path / "run", "--model", "pca", "--k", "3")
    assert status == 2 and err.startswith("error  --k does not apply to --model pca, which takes")


def test_flags_win_over_assignments_and_these_over_the_config_file(tmp_path, capsys):
    store = write_store(tmp_path / "acts", 300)
    file = tmp_path / "run.toml"
    file.write_text('sparsity = "jumprelu"\nbandwidth = 0.1\nlatents = 8\nbatch = 64\nrows = 128\n')
    assigned = ("--set", "bandwidth=0.2", "--set", "freq_coef=0.5")
    for arguments, bandwidth in ((assigned, 0.2), ((*assigned, "--bandwidth", "0.3"), 0.3)):
        out = tmp_path / f"run{bandwidth}"
        given = ("--config", file, "--expansion", 2, "-q", *arguments)
        assert command(capsys, "train", store, out, *given)[0] == 0
        config = saekit.load(out).config
        assert (config.bandwidth, config.freq_coef, config.latents) == (bandwidth, 0.5, 32)


def test_signatures_and_types_of_keywords_are_those_of_the_options():
    shown = inspect.signature(saekit.train).parameters
    assert shown["lr"].default is None and shown["schedule"].default == "linear"
    assert {"k", "beta", "hidden"} <= shown.keys() and "options" not in shown
    assert set(typing.get_type_hints(TrainKeywords)) == {*options_of(TrainConfig), *every_option()}
    assert set(typing.get_type_hints(HarvestKeywords)) == set(options_of(HarvestConfig))
