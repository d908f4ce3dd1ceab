"""`import saekit` at a prompt: what completes, what help() explains, what survives a pickle."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import re
from types import FunctionType

import pytest

import saekit
import saekit.training.run
from saekit.harvesting.config import HarvestConfig
from saekit.models.catalog import every_option, labelled_options, model_options
from saekit.options import options_of
from saekit.training.config import TrainConfig

FUNCTIONS = [name for name in saekit.__all__ if isinstance(getattr(saekit, name), FunctionType)]


def explained(name: str) -> dict[str, str]:
    """Name of a parameter -> the line in help() that begins with it."""
    text = pydoc.plain(pydoc.render_doc(getattr(saekit, name)))
    lines = re.findall(
        r"^ +((?:\w+, )*\w+)( \((?:[^()]|\([^()]*\))*\))?: (.*)$", text, re.MULTILINE
    )
    return {word: kind + said for names, kind, said in lines for word in names.split(", ")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_explains_every_parameter(name):
    parameters = inspect.signature(getattr(saekit, name)).parameters
    assert parameters.keys() <= explained(name).keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_can_be_read(name):
    text = str(inspect.signature(getattr(saekit, name)))
    assert "'" not in re.sub(r"Literal\[[^]]*\]|= '[^']*'", "", text)  # no quoted types
    assert "lambda" not in text and "Doc(" not in text and "Annotated" not in text


def test_help_of_train_has_type_default_and_meaning_of_every_option():
    said = explained("train")
    assert {*options_of(TrainConfig), *every_option()} <= said.keys()
    assert said["warmup"].startswith(" (float, default 0.05)Share of the steps")
    assert said["rows"].startswith(" (int)Rows to train on")  # the number, not the data
    assert "model vae" in said["beta"] and "sparsity" not in said["beta"]
    text = inspect.getdoc(saekit.train)
    assert text.index("Raises UsageError") < text.index("\nOptions\n") < text.index(" k (int")


def test_help_of_harvest_has_the_fields_of_its_config():
    assert options_of(HarvestConfig).keys() <= explained("harvest").keys()


def test_options_name_the_models_that_take_them_where_these_are_few():
    found = labelled_options()
    assert found.keys() == every_option().keys()
    assert found["contractive"].doc.text.endswith("For model linear, dense.")
    assert "For" not in found["expansion"].doc.text  # of every SAE
    takers = re.search(r"For sparsity ([\w, -]+)", found["bandwidth"].doc.text)[1].split(", ")
    assert all("bandwidth" in model_options("sae", variant) for variant in takers)
    assert (
        found["sparsity"].default is None and "depends on the model" in found["sparsity"].doc.text
    )
    assert found["aux_coef"].default == model_options("sae")["aux_coef"].default


def test_a_prompt_completes_public_names():
    names = [name for name in dir(saekit) if not name.startswith("_")]
    assert sorted(names) == sorted(saekit.__all__)


def test_a_misspelled_name_is_guessed():
    with pytest.raises(AttributeError, match="no attribute 'trian'; did you mean train"):
        _ = saekit.trian


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_go_through_pickle_and_keep_their_source(name):
    function = getattr(saekit, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__name__ in inspect.getsource(function)


def test_the_functions_in_their_modules_are_as_they_were():
    assert saekit.training.run.train.__doc__.rstrip().endswith("is an `out`.")
    assert inspect.unwrap(saekit.train) is saekit.training.run.train


def test_a_misspelled_option_is_guessed():
    for wrong, right in (("sparsty", "sparsity"), ("bach", "batch"), ("latnets", "latents")):
        with pytest.raises(saekit.SaekitError, match=f"\ntry: did you mean {right}"):
            saekit.train([[0.0]], **{wrong: 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"K": 3}, "did you mean k"),
        ({"targetL0": 3}, "did you mean target_l0"),
        ({"sparsity": "batchtopk", "targetl0": 3}, "^targetl0: did you mean target_l0.* not apply"),
        ({"bandwith": 3}, "^bandwith: did you mean bandwidth.* not apply"),
        ({"model": "transcoder"}, "with target_store, the rows to predict, is one"),
        ({"model": "crosscoder"}, "on several stores is one"),
    ],
)
def test_a_guess_looks_past_hyphens_and_case_and_at_other_variants(options, words):
    with pytest.raises(saekit.SaekitError, match=words):
        saekit.train([[0.0]], **options)


def test_help_has_the_number_of_rows_beside_the_rows():
    names = list(inspect.signature(saekit.train).parameters)
    assert names[0] == "activations" and "rows" in names


def test_a_misspelled_keyword_is_guessed():
    with pytest.raises(TypeError, match=r"argument 'splt'\. Did you mean 'split'\?"):
        saekit.evaluate([], [], splt="all")
    with pytest.raises(TypeError, match=r"argument 'zzz'$"):
        saekit.load("runs/a", zzz=1)
