"""sweep.toml -> the settings of every member.

Settings are options of training, by name. A list means one member for each value, several lists all
combinations; what stands above the first table holds for all members, each [[runs]] table is a grid
of its own:

    rows = 400_000
    seed = [0, 1, 2]

    [[runs]]
    sparsity = "topk"
    k = [16, 32, 64]

    [[runs]]
    sparsity = "l1"
    target_l0 = [16, 32, 64]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.config import load_toml
from saekit.errors import DataError, SaekitError, opt
from saekit.training.config import TrainConfig

RUNS = "runs"
LARGEST = 10_000  # members
# of a single run, or of the sweep
NOT_SWEPT = ("target_store", "stores", "log", "device", "save_seconds")
WHOLE = ("groups", "hidden", "channels")  # options whose one value is a list


@dataclass(frozen=True)
class Member:
    name: str
    """A folder: what tells it from the others, `topk-k16-seed0`."""
    group: str
    """The same without the seed."""
    config: TrainConfig


def read_grid(path: Path, device: str = "auto") -> list[Member]:
    """The members of a file. Raises MissingError, DataError (naming the file and the member)."""
    settings = load_toml(path, "grid file")
    try:
        return members_of(settings, device)
    except SaekitError as error:
        raise DataError(f"{path}: {error.cause}", error.remedy) from None


def members_of(settings: dict[str, Any], device: str = "auto") -> list[Member]:
    """The same of a dict, as a TOML file gives it. Raises UsageError, DataError."""
    tables = settings.get(RUNS, [{}])
    if (
        not isinstance(tables, list)
        or not tables
        or not all(isinstance(table, dict) for table in tables)
    ):
        raise DataError(f"{RUNS} is a list of tables", f"start each with [[{RUNS}]]")
    common = {name: value for name, value in settings.items() if name != RUNS}
    asked = sum(
        math.prod(
            len(v) if isinstance(v, list) and n not in WHOLE else 1 for n, v in (common | t).items()
        )
        for t in tables
    )
    if asked > LARGEST:
        raise DataError(
            f"the grid has {asked:,} members", f"a sweep holds all in memory: at most {LARGEST:,}"
        )
    found = [chosen for table in tables for chosen in _combinations(common | table)]
    varying = [
        name
        for name in dict.fromkeys(key for each in found for key in each)
        if len({repr(each.get(name)) for each in found}) > 1
    ]
    members = []
    for chosen in found:
        config = _config(chosen, device)
        telling = {
            name: chosen[name]
            for name in (*(n for n in varying if n != "seed"), "seed")
            if name in chosen and name in varying
        }
        kind = config.options.get("sparsity", "topk") if config.model == "sae" else config.model
        group = _name({name: value for name, value in telling.items() if name != "seed"}) or kind
        name = f"{group}-seed{config.seed}" if "seed" in telling else group
        members.append(Member(name, group, config))
    twice = {m.name for m in members if sum(other.name == m.name for other in members) > 1}
    if twice:
        raise DataError(f"{min(twice)} appears twice", "give each member once")
    return members


def _combinations(settings: dict[str, Any]) -> list[dict[str, Any]]:
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    values = [_values(name, value) for name, value in settings.items()]
    return [dict(zip(settings, chosen)) for chosen in itertools.product(*values)]


def _values(name: str, value: Any) -> list[Any]:
    if name in WHOLE:  # a list of lists sweeps it
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], (list, str))
        return [_whole(name, each) for each in (value if nested else [value])]
    if not isinstance(value, list):
        return [value]
    if not value:
        raise DataError(f"{name} is an empty list", f"give {name} a value or drop it")
    return value


def _whole(name: str, value: Any) -> tuple[float, ...]:
    """An option that is a list itself, also as config.toml writes it: '0.25,1'."""
    parts = (
        value.split(",")
        if isinstance(value, str)
        else value
        if isinstance(value, list)
        else [value]
    )
    try:
        return tuple(float(part) if name == "groups" else int(part) for part in parts)
    except (TypeError, ValueError):
        raise DataError(f"{name} = {value} is not a list of numbers") from None


def _config(chosen: dict[str, Any], device: str) -> TrainConfig:
    bad = [name for name in chosen if name in NOT_SWEPT]
    if bad:
        raise DataError(
            f"{bad[0]} is not for a grid",
            f"a sweep trains on one store; {opt('device')} is an option of the sweep",
        )
    # One order of rows for all members, whatever their seed: that is what lets them share a pass.
    return TrainConfig.from_flat({"order_seed": 0} | chosen | {"device": device})


def _name(telling: dict[str, Any]) -> str:
    """topk-k16-seed0: values of words alone, numbers with their names."""
    parts = [
        str(value) if isinstance(value, str) else _named(name.replace("_", "-"), _text(value))
        for name, value in telling.items()
    ]
    return "-".join(part.replace("/", "_").replace(":", "_") for part in parts)


def _named(name: str, value: str) -> str:
    """k16, but target-l0-16: a name that ends in a digit would run into its value."""
    return f"{name}-{value}" if name[-1].isdigit() else name + value


def _text(value: Any) -> str:
    return (
        "+".join(map(_text, value))
        if isinstance(value, tuple)
        else _short(value)
        if isinstance(value, float)
        else str(value)
    )


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
