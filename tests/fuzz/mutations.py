"""Files a little wrong, from a seed: bytes flipped, cut, moved; values of JSON and TOML replaced by
others; safetensors headers that lie.

Each function takes the bytes of a right file and a `random.Random`, and gives the bytes of a wrong
one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from typing import Any

VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**32, 2**53, 2**63, -(2**63), 10**30, 10**400,
    0.0, -0.0, 0.5, 1.5, -1e-300, 1e308,
    math.nan, math.inf, -math.inf, "", "0", "x", "true", "..", "../..", "/dev/zero", "a/b", "\x00",
    "\ud800", "é" * 300, [], [1], [[]],
    ["x"], [None], {}, {"x": 1}, {"": {}}, [[1, 2], [3]], [0] * 1000,
]  # fmt: skip


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, size = rng.randrange(len(result) + 1), rng.choice((1, 4, 16, 300))
        way = rng.randrange(7)
        if way == 0 and result:
            result[min(at, len(result) - 1)] ^= 1 << rng.randrange(8)
        elif way == 1:
            del result[at:]
        elif way == 2:
            del result[at : at + size]
        elif way == 3:
            result[at:at] = rng.randbytes(size)
        elif way == 4:
            begin = rng.randrange(len(result) + 1)
            result[at : at + size] = result[begin : begin + size]
        elif way == 5:
            result[at : at + size] = bytes([rng.choice((0, 255, 0x80, 0x7B, 0x5B))]) * size
        else:
            result[at:at] = result[at : at + size] * rng.choice((2, 50))
    return bytes(result)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A copy with one of its nodes replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    holder, key = rng.choice(places)
    way = rng.randrange(10)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 1:
        holder[rng.choice(("x", "", key + "s"))] = holder.pop(key)
    elif way == 2:
        other, there = rng.choice(places)
        holder[key] = copy.deepcopy(other[there])
    elif way == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        number = holder[key] if abs(holder[key]) < 1e300 else 0
        holder[key] = rng.choice(
            (number + 1, -number, number * 10, str(number), float(number), [number])
        )
    elif way == 4:
        holder[key] = [copy.deepcopy(holder[key])]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any):
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield value, key
        yield from _places(item)


def _text(value: Any, rng: random.Random) -> bytes:
    text = _dumps(value)
    if rng.random() < 0.03:
        text = rng.choice(
            (
                "[" * 100_000,
                '{"a":' * 50_000,
                "9" * 5000,
                "",
                "null",
                "\ufeff" + text,
                text + text,
                text.replace('"', "'"),
            )
        )
    return text.encode("utf-8", "surrogatepass")


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # more digits than Python prints
        return json.dumps(value, default=str)


def of_json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = mutated_value(value, rng)
    return _text(value, rng)


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON lines."""
    lines = data.splitlines()
    if rng.random() < 0.3 or not lines:
        return of_bytes(data, rng)
    at = rng.randrange(len(lines))
    lines[at] = of_json(lines[at], rng)
    return b"\n".join(lines) + rng.choice((b"\n", b"", b"\n\n", b"\r\n"))


def of_toml(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    lines = data.decode().splitlines()
    places = [n for n, line in enumerate(lines) if " = " in line]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(places)
        name = lines[at].split(" = ")[0]
        value = rng.choice(VALUES)
        written = (
            _dumps(value)
            .replace("null", '"null"')
            .replace("NaN", "nan")
            .replace("Infinity", "inf")
            .replace(": ", " = ")
        )
        lines[at] = rng.choice(
            (
                f"{name} = {written}",
                f"{name} = [{written}, 1]",
                f"{name}s = 1",
                f"[{name}]",
                f"[[{name}]]",
                "",
                name,
            )
        )
    return "\n".join(lines).encode("utf-8", "replace")


def of_tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file: bytes anywhere, or a header that says other things."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__") or {}
    if "state" in metadata and rng.random() < 0.5:
        metadata["state"] = of_json(metadata["state"].encode(), rng).decode("utf-8", "replace")
    elif rng.random() < 0.3:  # shapes that are consistent in themselves
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        shape = entry["shape"]
        entry["shape"] = rng.choice(([*shape, 1], [1, *shape], shape[::-1], [math.prod(shape)]))
    else:
        header = mutated_value(header, rng)
    text = _text(header, rng)
    said = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return said.to_bytes(8, "little") + text + body


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
