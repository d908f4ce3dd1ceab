"""sweep.toml -> the settings of every member.

Settings are options of training, by name. A list means one member for each value, several lists all
combinations. Settings above the first table apply to all members; each [[runs]] table is a separate
grid:

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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.config import load_toml
from saekit.errors import DataError, SaekitError, opt
from saekit.models.catalog import every_option
from saekit.training.config import TrainConfig

RUNS = "runs"
LARGEST = 10_000  # members
# options of a single run, or of the whole sweep
NOT_SWEPT = ("target_store", "stores", "log", "device", "save_seconds")
WHOLE = {  # options whose one value is a list -> the type of its entries
    name: option.item for name, option in every_option().items() if option.item is not None
}


@dataclass(frozen=True)
class Member:
    name: str
    """Its folder, named by the settings that differ between members: `topk-k16-seed0`."""
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

    # every combination, as long as there are not too many
    size = sum(_size(common | table) for table in tables)
    if size > LARGEST:
        raise DataError(
            f"the grid has {size:,} members", f"a sweep holds all in memory: at most {LARGEST:,}"
        )
    combinations = [chosen for table in tables for chosen in _combinations(common | table)]

    # a name for each, of the settings in which they differ
    names = dict.fromkeys(name for chosen in combinations for name in chosen)
    varying = [n for n in names if len({repr(chosen.get(n)) for chosen in combinations}) > 1]
    members = [_member(chosen, varying, device) for chosen in combinations]
    repeated = [name for name, count in Counter(m.name for m in members).items() if count > 1]
    if repeated:
        raise DataError(f"{min(repeated)} appears twice", "give each member once")
    return members


def _size(settings: dict[str, Any]) -> int:
    """Combinations of one table."""
    return math.prod(
        len(value) if isinstance(value, list) and name not in WHOLE else 1
        for name, value in settings.items()
    )


def _member(chosen: dict[str, Any], varying: list[str], device: str) -> Member:
    config = _config(chosen, device)
    kind = config.options.get("sparsity", "topk") if config.model == "sae" else config.model
    telling = {n: chosen[n] for n in varying if n in chosen and n != "seed"}
    group = _name(telling) or kind
    seeded = "seed" in chosen and "seed" in varying
    return Member(f"{group}-seed{config.seed}" if seeded else group, group, config)


def _combinations(settings: dict[str, Any]) -> list[dict[str, Any]]:
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    values = [_values(name, value) for name, value in settings.items()]
    return [dict(zip(settings, chosen)) for chosen in itertools.product(*values)]


def _values(name: str, value: Any) -> list[Any]:
    if name in WHOLE:  # a list of lists sweeps it
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], (list, str))
        return [_whole(name, part) for part in (value if nested else [value])]
    if not isinstance(value, list):
        return [value]
    if not value:
        raise DataError(f"{name} is an empty list", f"give {name} a value or drop it")
    return value


def _whole(name: str, value: Any) -> tuple[float, ...]:
    """An option that is a list itself, also as config.toml writes it: '0.25,1'."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = parts if isinstance(parts, list) else [parts]
        return tuple(WHOLE[name](part) for part in numbers)
    except (TypeError, ValueError):
        raise DataError(f"{name} = {value} is not a list of numbers") from None


def _config(chosen: dict[str, Any], device: str) -> TrainConfig:
    if refused := [name for name in chosen if name in NOT_SWEPT]:
        raise DataError(
            f"{refused[0]} is not for a grid",
            f"a sweep trains on one store; {opt('device')} is an option of the sweep",
        )
    # one order of rows for all members, whatever their seed, so that they can share a pass
    return TrainConfig.from_flat({"order_seed": 0} | chosen | {"device": device})


def _name(telling: dict[str, Any]) -> str:
    """topk-k16: words without the names of their options, numbers with them."""
    parts = [
        str(value) if isinstance(value, str) else _named(name.replace("_", "-"), _text(value))
        for name, value in telling.items()
    ]
    return "-".join(part.replace("/", "_").replace(":", "_") for part in parts)


def _named(name: str, value: str) -> str:
    """k16, but target-l0-16, since the name ends in a digit."""
    return f"{name}-{value}" if name[-1].isdigit() else name + value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
