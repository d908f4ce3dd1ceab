"""One text for three readers: the library names options as Python does, the command line as flags,
the estimator as its parameters."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import pickle
import re
import traceback
from pathlib import Path

import pytest
import torch
from made_stores import write_store
from saekit_cli import flags
from saekit_cli.app import VERBS, _status
from saekit_cli.command import build

import saekit
from saekit.bench import Asked
from saekit.errors import DataError, SaekitError, UsageError, check_choice, opt, spelled
from saekit.estimator import _parameter
from saekit.harvesting.config import HarvestConfig
from saekit.intervention.config import FinetuneConfig
from saekit.intervention.dose_response import dose_response
from saekit.intervention.live import AttachedDictionary, Where
from saekit.measures.codes import map_2d
from saekit.models.catalog import CATALOG
from saekit.models.sparsity import VARIANTS
from saekit.serving.run import serve
from saekit.training.config import TrainConfig
from saekit.types import Progress

SOURCES = sorted(path for path in Path(saekit.__file__).parent.rglob("*.py"))
# Complete commands for a shell, which read the same to everyone, and ends of such commands.
SHELL = re.compile(r"(saekit [a-z]+|pip install|git) ")
ENDS = {"{} --store {}": "saekit.store.stack.with_stores", "{} --force-reinstall": "of pip install"}
# Texts that no caller reads as an error, and why they hold dashes.
NO_ERRORS = {
    "embedded/digits_vit/train.py": "a script with its own command line",
    "embedded/openmoji_vit/train.py": "a script with its own command line",
    "models/describe.py": "the page of `saekit models`, which lists flags",
    "report/axes.py": "CSS variables",
    "inspection/card.py": "CSS variables",
    "bench/timing.py": "arguments of git",
}


@pytest.fixture
def train():
    flags.speak_for("train")
    yield
    flags.speak_for(None)


@pytest.mark.parametrize(
    ("marked", "python", "command_line", "estimator"),
    [
        (opt("k"), "k", "--k", 'options["k"]'),
        (opt("k", 32), "k=32", "--k 32", 'options={"k": 32}'),
        (opt("weight_decay", 0.05), "weight_decay=0.05", "--weight-decay 0.05",
        "weight_decay=0.05"),
        (opt("lr", math.nan), "lr=nan", "--lr nan", "lr=nan"),
        (opt("seed", -1), "seed=-1", "--seed -1", "random_state=-1"),
        (opt("skip", True), "skip=True", "--skip", 'options={"skip": True}'),
        (opt("skips", False), "skips=False", "--no-skips", 'options={"skips": False}'),
        (opt("hidden", (512, 128)), "hidden=(512, 128)", "--hidden 512,128",
        'options={"hidden": (512, 128)}'),
        (opt("hidden", [64]), "hidden=(64,)", "--hidden 64", 'options={"hidden": (64,)}'),
        (opt("schedule", "linear", "cosine"), 'schedule="linear" or "cosine"',
        "--schedule linear or cosine", None),
        (opt("target_store", Path("acts/b")), 'target_store="acts/b"', "--target-store acts/b",
        None),
        (opt("stores", ["a", "b"]), 'stores=("a", "b")', "--store a --store b", None),
        (opt("bandwidth", 0.3), "bandwidth=0.3", "--bandwidth 0.3",
        'options={"bandwidth": 0.3}'),
        (opt("bandwidth"), "bandwidth", "--bandwidth", 'options["bandwidth"]'),
        (opt("store"), "store", "STORE", None),  # an argument of train
    ],
)  # fmt: skip
def test_an_option_in_three_languages(marked, python, command_line, estimator, train):
    error = UsageError(f"{marked} is wrong", f"use {marked}")
    assert (error.message, error.hint) == (f"{python} is wrong", f"use {python}")
    assert str(error) == f"{python} is wrong\ntry: use {python}"
    assert error.spelled(flags.flag) == (f"{command_line} is wrong", f"use {command_line}")
    if estimator is not None:
        assert error.spelled(_parameter)[0] == f"{estimator} is wrong"


def test_the_command_that_runs_says_what_a_name_is():
    flags.speak_for("evaluate")
    assert spelled(opt("store", ["a", "b"]), flags.flag) == "--store a --store b"
    flags.speak_for("sweep")
    assert spelled(opt("store"), flags.flag) == "STORE"
    flags.speak_for(None)


def test_the_error_knows_its_option():
    assert UsageError(f"{opt('k', 40)} must be at most 32").option == "k"
    assert UsageError("no such thing").option is None
    assert UsageError("backend x is unknown", option="backend").option == "backend"
    with pytest.raises(UsageError, match='split="tets": did you mean test') as raised:
        check_choice("split", "tets", ("train", "test"))
    assert raised.value.option == "split"


def test_an_error_inside_another_keeps_its_options():
    inner = UsageError(f"{opt('k', 0)} must be at least 1", opt("k", 32))
    outer = DataError(f"grid.toml: {inner.cause}", inner.remedy)
    assert (outer.message, outer.hint) == ("grid.toml: k=0 must be at least 1", "k=32")
    assert outer.spelled(flags.flag) == ("grid.toml: --k 0 must be at least 1", "--k 32")


def test_a_traceback_ends_with_the_hint_in_pythons_words():
    with pytest.raises(SaekitError) as raised:
        TrainConfig(warmup=0.5, decay=0.6)
    *_, cause, hint = traceback.format_exception_only(raised.value)[-1].splitlines()
    assert cause.endswith("warmup=0.5 and decay=0.6 are more than the whole run")
    assert hint == "try: warmup=0.4"
    assert str(UsageError("no such thing")) == "no such thing"  # without an empty hint


@pytest.mark.parametrize(
    ("options", "hint"),
    [({"k": 0}, "k=32"), ({"k": 64, "latents": 16}, "k=16"), ({"sparsty": "l1"}, "did you mean")],
)
def test_a_hint_names_a_value_that_works(options, hint):
    with pytest.raises(UsageError) as raised:
        saekit.train(torch.eye(64), **options)
    assert str(raised.value).splitlines()[-1].startswith(f"try: {hint}")


def test_an_error_goes_through_pickle():
    error = pickle.loads(pickle.dumps(UsageError(f"{opt('k', 0)} is wrong", opt("skip", True))))
    assert (type(error), error.option, error.message, error.hint) == (
        UsageError,
        "k",
        "k=0 is wrong",
        "skip=True",
    )
    assert error.spelled(flags.flag) == ("--k 0 is wrong", "--skip")


@pytest.mark.parametrize(
    "text", ["\U000f5ae0k\U000f5ae2", "\U000f5ae2", 'a"b\\', "\ud800", "--k 3"]
)
def test_what_a_user_wrote_is_a_value_whatever_it_holds(text):
    assert spelled(opt("column", text), lambda name, values: repr((name, values))) == repr(
        ("column", [text])
    )


def test_a_message_is_python_for_a_callback_and_flags_on_the_screen(train):
    progress = Progress("harvest", 0, 0, message=f"{opt('dtype', 'auto')}: float16")
    assert progress.message == 'dtype="auto": float16'
    assert spelled(progress.raw_message, flags.flag) == "--dtype auto: float16"


def test_a_hint_works_in_python_when_it_is_typed():
    with pytest.raises(SaekitError) as raised:
        TrainConfig(warmup=0.5, decay=0.6)
    assert raised.value.hint == "warmup=0.4"
    assert TrainConfig(**eval(f"dict({raised.value.hint})"), decay=0.6).warmup == 0.4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--latents", "64", "--k", "0"],
            "error  --k 0 must be between 1 and the number of latents, 64",
        ),
        (["--latents", "0", "--model", "pca"], "error  --latents 0: pca takes"),
        (["--set", "bandwidth"], "error  --set bandwidth: give NAME=VALUE"),
        (["--bandwidth", "0.3"], "error  --bandwidth does not apply to --sparsity topk"),
        (
            ["--sparsity", "matryoshka", "--groups", "0.5,0.4"],
            "error  --groups 0.5,0.4: shares must rise to 1",
        ),
        (
            ["--target-store", "acts", "--store", "acts"],
            "error  --store applies to --model sae without --target-store",
        ),
        (["--warmup", "0.5", "--decay", "0.6"], "try    --warmup 0.4"),
    ],
)
def test_the_command_line_speaks_flags(arguments, said, tmp_path, capsys):
    store = write_store(tmp_path / "acts", 300)
    status = _status(["train", str(store), str(tmp_path / "out"), "-q", *arguments])
    assert (
        status in (2, 3)
        and said in capsys.readouterr().err.splitlines()[0 if said.startswith("error") else 1]
    )


# -- the sources -----------------------------------------------------------------------------------


def texts(path: Path):
    """(line, text) of every string that is not a docstring; the fields of an f-string are `{}`."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    # docstrings, and those under a field
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ),
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside | bare
        ):
            yield node.lineno, node.value


def test_no_text_of_the_library_holds_a_flag():
    root = Path(saekit.__file__).parent
    found = [
        f"{path.relative_to(root)}:{line}: {text}"
        for path in SOURCES
        if str(path.relative_to(root)) not in NO_ERRORS
        for line, text in texts(path)
        for flag in re.finditer(r"(?<![\w-])--[a-z{]", text)
        if not SHELL.search(text[: flag.start()]) and text not in ENDS
    ]
    assert found == []


def named_options() -> set[str]:
    """The names that raise sites give to opt and check_choice."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("opt", "check_choice")
            ):
                names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return names


def test_every_option_that_a_text_names_is_a_parameter_of_python_and_of_the_command_line():
    configs = [
        TrainConfig,
        HarvestConfig,
        FinetuneConfig,
        *(entry.config for entry in CATALOG.values()),
    ]
    configs += [variant.config_class for variant in VARIANTS.values()]
    of_models = {field.name for config in configs[3:] for field in dataclasses.fields(config)}
    python = of_models | {
        field.name for config in configs[:3] for field in dataclasses.fields(config)
    }
    edits = (getattr(AttachedDictionary, name) for name in ("add", "swap"))
    verbs = (getattr(saekit, name) for name in saekit.__all__)
    for public in (*verbs, *edits, map_2d, Asked, dose_response, serve):
        python |= set(inspect.signature(public).parameters)
    python |= Where.__annotations__.keys()  # of every edit
    names = named_options() - {"push", "public", "yes"}  # only of the command line
    assert len(names) > 50 and names <= python
    command_line = {p.name for verb in VERBS.values() for p in build(verb, []).params}
    assert names - command_line <= {
        *("epochs", "method"),  # of the estimator and of Store.sample
        *("doses", "texts"),  # of dose_response
        *("codes", "dose", "examples", "maxima", "positions", "raw"),  # of attach
        "input_norm",  # of loaded weights
        "targets",  # numbers of tokens, of steer
        "processor",  # of a model in memory
    }


def test_a_name_from_a_file_that_is_no_parameter_is_shown_as_it_is():
    for name in ("3parsity", "", "spar sity", "--k"):
        with pytest.raises(UsageError) as raised:
            TrainConfig.from_flat({name: 1})
        assert str(raised.value).startswith(f'{name} does not apply to model="sae"')
