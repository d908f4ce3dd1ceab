"""Mistakes that the interpreter forgives and a GPU does not, found in the source of every kernel.

1. A cumulative sum (or other scan) over a comparison: an i1 scan is an exclusive-or on the device
   and a count in the interpreter.
2. A masked load without `other`: what lies outside is undefined on the device and zero in the
   interpreter.
3. 32-bit offsets, which wrap beyond 2^31 elements: numpy computes them in 64 bits or warns at most.
   Every tl.program_id(...) is cast on the spot, `tl.program_id(0).to(tl.int64)`, and every product
   inside an address has an int64 factor, unless both factors are small by construction (constants,
   tl.arange, counters of a range(), numbers of blocks, sums of those) or it is a constant times an
   argument. A stride is not small. Names are followed to what they are bound to, parameters of
   helpers to what the kernels of the file pass.
4. A choice of precision left open: tl.dot without input_precision (fp32 operands become tf32, with
   10 bits, on the device only).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import saekit_kernels.gpu

SCANS = {"cumsum", "cumprod", "associative_scan"}
ADDRESSED = {
    "load",
    "store",
    "atomic_add",
    "atomic_max",
    "atomic_min",
    "atomic_cas",
    "atomic_xchg",
    "atomic_or",
    "atomic_and",
}
# calls of tl whose result takes no width from their arguments
NEVER_WIDE = {"load", "arange", "program_id", "num_programs", "dot"}


class Kernel:
    """One @jit function: what its names are bound to, and questions about expressions.
    `module` holds the kernels of its file."""

    def __init__(self, function: ast.FunctionDef, module: dict[str, Kernel]) -> None:
        self.function, self.module = function, module
        # parameter -> what it is given, and in which kernel
        self.callers: dict[str, list[tuple[Kernel, ast.expr]]] = {}
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self.parameters = {a.arg for a in arguments}
        self.constants = {
            a.arg
            for a in arguments
            if a.annotation is not None and "constexpr" in ast.unparse(a.annotation)
        }
        self.bound: dict[str, list[ast.expr]] = {}
        self.counters: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._bind(node.target, node.value)
            elif isinstance(node, ast.AugAssign):
                self._bind(node.target, ast.BinOp(node.target, node.op, node.value))
            elif (
                isinstance(node, ast.For)
                and isinstance(node.iter, ast.Call)
                and isinstance(node.target, ast.Name)
            ):
                self.counters.setdefault(node.target.id, []).extend(node.iter.args)

    @property
    def returned(self) -> list[ast.expr]:
        values = [
            node.value
            for node in ast.walk(self.function)
            if isinstance(node, ast.Return) and node.value is not None
        ]
        return [
            part
            for value in values
            for part in (value.elts if isinstance(value, ast.Tuple) else [value])
        ]

    def helper(self, func: ast.expr) -> Kernel | None:
        return self.module.get(func.id) if isinstance(func, ast.Name) else None

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for part, part_value in zip(target.elts, values):
                self._bind(part, part_value)
        elif isinstance(target, ast.Name):
            self.bound.setdefault(target.id, []).append(value)

    def _each(self, name: str, question, open_names: frozenset[str], default: bool) -> bool:
        """Whether `question` holds for everything `name` is bound to. A name inside its own
        definition (x = x + 1) does not count."""
        key = f"{self.function.name}.{name}"
        if key in open_names:
            return True
        answers = [question(self, value, open_names | {key}) for value in self.bound.get(name, [])]
        if name in self.parameters:
            given = self.callers.get(name, [])
            answers += [question(caller, value, open_names | {key}) for caller, value in given] or [
                default
            ]
        return bool(answers) and all(answers)

    def wide(self, e: ast.expr, seen: frozenset[str] = frozenset()) -> bool:
        """The expression is int64."""
        match e:
            case ast.Name(id=name) if name in self.counters and name not in self.bound:
                return any(self.wide(bound, seen) for bound in self.counters[name])
            case ast.Name(id=name):
                return self._each(name, Kernel.wide, seen, default=False)
            case ast.BinOp(left=left, right=right):
                return self.wide(left, seen) or self.wide(right, seen)
            case ast.UnaryOp(operand=inner) | ast.Subscript(value=inner):
                return self.wide(inner, seen)
            case ast.IfExp(body=body, orelse=orelse):
                return self.wide(body, seen) and self.wide(orelse, seen)
            case ast.Call(func=ast.Attribute(attr="to"), args=[kind, *_]):
                return ast.unparse(kind) == "tl.int64"
            case ast.Call(func=func, args=args, keywords=keywords):
                if any(ast.unparse(a) == "tl.int64" for a in [*args, *(k.value for k in keywords)]):
                    return True
                if (helper := self.helper(func)) is not None:
                    return bool(helper.returned) and all(
                        helper.wide(value, seen) for value in helper.returned
                    )
                return tl_name(func) not in {None, *NEVER_WIDE} and any(
                    self.wide(a, seen) for a in args
                )
        return False

    def small(self, e: ast.expr, seen: frozenset[str] = frozenset()) -> bool:
        """Bounded by block sizes or by a count of elements along one axis."""
        match e:
            case ast.Constant():
                return True
            case ast.Name(id=name) if name in self.constants or name in self.counters:
                return True
            case ast.Name(id=name):
                return self._each(name, Kernel.small, seen, default=False)
            case ast.BinOp(left=left, right=right):
                return self.small(left, seen) and self.small(right, seen)
            case ast.UnaryOp(operand=inner) | ast.Subscript(value=inner):
                return self.small(inner, seen)
            case ast.Call(func=ast.Attribute(attr="to", value=inner)):
                return self.small(inner, seen)
            case ast.Call(func=func, args=[count, block]) if tl_name(func) == "cdiv" and self.small(
                block, seen
            ):
                # blocks along an axis
                return (isinstance(count, ast.Name) and count.id in self.parameters) or self.small(
                    count, seen
                )
            case ast.Call(func=func, args=args):
                return tl_name(func) == "arange" or (
                    tl_name(func) in {"minimum", "maximum"}
                    and all(self.small(a, seen) for a in args)
                )
        return False

    def block_of(self, product: ast.BinOp) -> bool:
        """A constant times an argument of the kernel: so many strides or so many tiles."""
        sides = (product.left, product.right)
        constant = any(
            isinstance(side, ast.Constant)
            or (isinstance(side, ast.Name) and side.id in self.constants)
            for side in sides
        )
        return constant and any(
            isinstance(side, ast.Name)
            and side.id in self.parameters - self.constants - set(self.bound)
            for side in sides
        )

    def boolean(self, e: ast.expr, seen: frozenset[str] = frozenset()) -> bool:
        match e:
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                return True
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.BitXor(), right=right):
                return self.boolean(left, seen) and self.boolean(right, seen)
            case ast.UnaryOp(operand=inner) | ast.Subscript(value=inner):
                return self.boolean(inner, seen)
            case ast.Name(id=name):
                return name not in seen and any(
                    self.boolean(value, seen | {name}) for value in self.bound.get(name, [])
                )
        return False

    def narrow_products(self, e: ast.expr, seen: frozenset[str] = frozenset()):
        """Products in an address, through names, that are computed in 32 bits and not small."""
        if isinstance(e, ast.Name):
            if e.id not in seen:
                for value in self.bound.get(e.id, []):
                    yield from self.narrow_products(value, seen | {e.id})
            return
        if isinstance(e, ast.Call) and tl_name(e.func) in NEVER_WIDE:
            # what a load returns is not part of the address; its own address is checked with it
            return
        if isinstance(e, ast.BinOp) and isinstance(e.op, ast.RShift | ast.BitAnd):
            return  # bits are taken out of a word (a population count multiplies and means to wrap)
        if isinstance(e, ast.Call) and (helper := self.helper(e.func)) is not None:
            for value in helper.returned:
                yield from helper.narrow_products(value, seen)
        if (
            isinstance(e, ast.BinOp)
            and isinstance(e.op, ast.Mult)
            and not self.wide(e)
            and not self.small(e)
            and not self.block_of(e)
        ):
            yield e
        for child in ast.iter_child_nodes(e):
            if isinstance(child, ast.expr) and not isinstance(child, ast.Compare):
                yield from self.narrow_products(child, seen)


def tl_name(func: ast.expr) -> str | None:
    """load for tl.load, otherwise None."""
    return (
        func.attr
        if isinstance(func, ast.Attribute)
        and isinstance(func.value, ast.Name)
        and func.value.id == "tl"
        else None
    )


def is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(d) in ("jit", "triton.jit") for d in node.decorator_list
    )


def kernels_of(source: str) -> list[Kernel]:
    module: dict[str, Kernel] = {}
    for node in ast.walk(ast.parse(source)):
        if is_kernel(node):
            module[node.name] = Kernel(node, module)
    for kernel in module.values():
        for node in ast.walk(kernel.function):
            if isinstance(node, ast.Call) and (helper := kernel.helper(node.func)) is not None:
                names = [a.arg for a in helper.function.args.args]
                for name, value in [
                    *zip(names, node.args),
                    *((k.arg, k.value) for k in node.keywords),
                ]:
                    helper.callers.setdefault(name, []).append((kernel, value))
    return list(module.values())


def traps(source: str) -> list[str]:
    """One line for each trap in the kernels of `source`."""
    found = []
    for kernel in kernels_of(source):

        def report(node: ast.AST, what: str, kernel=kernel) -> None:
            found.append(
                f"{kernel.function.name}, line {getattr(node, 'lineno', '?')}: {what}:"
                f" {ast.unparse(node)}"
            )

        cast = {
            id(n.func.value)
            for n in ast.walk(kernel.function)
            if isinstance(n, ast.Call) and is_int64_cast(n)
        }
        for node in ast.walk(kernel.function):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = tl_name(node.func), {k.arg: k.value for k in node.keywords}
            scanned = (
                name
                if name in SCANS
                else (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute) and node.func.attr in SCANS
                    else None
                )
            )
            if scanned is not None:
                subject = node.args[0] if name in SCANS else node.func.value
                if kernel.boolean(subject):
                    report(node, "scan over a comparison; cast it to tl.int32")
            if (
                name == "load"
                and (len(node.args) == 2 or "mask" in keywords)
                and "other" not in keywords
                and len(node.args) < 3
            ):
                report(node, "masked load without other")
            if name == "program_id" and id(node) not in cast:
                report(node, "program id that is not cast to tl.int64 on the spot")
            if name in ADDRESSED:
                for product in kernel.narrow_products(node.args[0]):
                    report(product, "32-bit product in an address")
            if name == "dot" and "input_precision" not in keywords:
                report(node, "dot product without input_precision")
    return sorted(set(found))


def is_int64_cast(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and [ast.unparse(a) for a in node.args] == ["tl.int64"]
    )


MODULES = sorted(Path(saekit_kernels.gpu.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_kernel_holds_a_trap(path):
    assert traps(path.read_text()) == []


def test_the_kernels_are_found():
    assert sum(len(kernels_of(path.read_text())) for path in MODULES) >= 6


# Each snippet is a kernel body; p is a pointer, n and stride are runtime integers, N a constant.
HEAD = "@triton.jit\ndef kernel(p, n, stride, N: tl.constexpr):\n    "
BAD = {
    "scan of a comparison": "tl.store(p, tl.cumsum(tl.load(p + tl.arange(0, N)) > 0, axis=0))",
    "scan of a named mask": (
        "hit = (tl.arange(0, N) < n) & (tl.arange(0, N) > 3)\n    c = tl.cumsum(hit, 0)"
    ),
    "scan of an inverted mask": "hit = ~(tl.arange(0, N) <= n)\n    c = hit.cumsum(0)",
    "associative scan of a mask": "c = tl.associative_scan(tl.arange(0, N) < n, 0, add)",
    "mask without other": "x = tl.load(p + tl.arange(0, N), mask=tl.arange(0, N) < n)",
    "positional mask without other": "x = tl.load(p + tl.arange(0, N), tl.arange(0, N) < n)",
    "bare program id": "i = tl.program_id(0)",
    "program id cast after the product": (
        "i = (tl.program_id(0) * stride).to(tl.int64)\n    tl.store(p + i, 0)"
    ),
    "32-bit rows": (
        "rows = tl.arange(0, N)\n    tl.store(p + rows[:, None] * stride + rows[None, :], 0)"
    ),
    "32-bit product cast too late": (
        "rows = tl.arange(0, N)\n    at = (rows * stride).to(tl.int64)\n    tl.store(p + at, 0)"
    ),
    "loaded index": "idx = tl.load(p + tl.arange(0, N))\n    x = tl.load(p + idx * N)",
    "loop counter": "for i in range(0, n):\n        tl.store(p + i * stride, 0)",
    "product of two sizes": "tl.store(p + n * stride, 0)",
    "pointer that moves": (
        "for i in range(0, n):\n        q = p + i * n\n        tl.atomic_max(q, 1)"
    ),
    "constant times size times stride": "tl.store(p + N * n * stride, 0)",
    "default precision": "a = tl.dot(p, p)",
    "wide on one path only": (
        "i = tl.program_id(0).to(tl.int64)\n    if n > 3:\n        i = n\n    tl.store(p + i *"
        " stride, 0)"
    ),
}
GOOD = {
    "cast before the scan": "c = tl.cumsum((tl.arange(0, N) < n).to(tl.int32), axis=0)",
    "scan of numbers": "x = tl.load(p + tl.arange(0, N))\n    c = tl.cumsum(x, 0)",
    "mask with other": "x = tl.load(p + tl.arange(0, N), mask=tl.arange(0, N) < n, other=0.0)",
    "positional other": "x = tl.load(p + tl.arange(0, N), tl.arange(0, N) < n, 0.0)",
    "no mask": "x = tl.load(p + tl.arange(0, N))",
    "wide rows": (
        "rows = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)\n    tl.store(p + rows[:, None]"
        " * stride, 0)"
    ),
    "small product": "for i in range(0, n):\n        tl.store(p + i * N + tl.arange(0, N), 0)",
    "cast index": (
        "idx = tl.load(p + tl.arange(0, N)).to(tl.int64)\n    x = tl.load(p + idx[:, None] *"
        " stride)"
    ),
    "int64 counter": (
        "row = tl.program_id(0).to(tl.int64)\n    for i in range(row * N, n):\n        tl.store(p +"
        " i * stride, 0)"
    ),
    "so many tiles": (
        "i = tl.program_id(0).to(tl.int64) // (8 * n)\n    tl.store(p + i + N * stride, 0)"
    ),
    "numbers of blocks": "tl.store(p + tl.program_id(0).to(tl.int64) % (N * tl.cdiv(n, N)), 0)",
    "product of values": "x = tl.load(p)\n    tl.store(p, x * n)",
    "precise": "a = tl.dot(p, p, input_precision='ieee')",
}


@pytest.mark.parametrize("name", BAD)
def test_each_trap_is_found(name):
    assert len(traps(HEAD + BAD[name])) >= 1


@pytest.mark.parametrize("name", GOOD)
def test_safe_code_passes(name):
    assert traps(HEAD + GOOD[name]) == []


def test_width_is_followed_into_helpers_and_back():
    helper = "@triton.jit\ndef offset(i, stride):\n    return i * stride\n"
    use = (
        "@triton.jit\ndef kernel(p, stride, N: tl.constexpr):\n    tl.store(p + offset({}, stride),"
        " 0)\n"
    )
    inside = "@triton.jit\ndef write(p, i, stride):\n    tl.store(p + i * stride, 0)\n"
    call = "@triton.jit\ndef kernel(p, stride, N: tl.constexpr):\n    write(p, {}, stride)\n"
    for source in (helper + use, inside + call):
        assert traps(source.format("tl.program_id(0).to(tl.int64)")) == []
        assert len(traps(source.format("tl.arange(0, N)"))) == 1


def test_code_outside_kernels_is_free():
    assert traps("def launcher(tl, p):\n    tl.load(p, mask=p)\n    tl.program_id(0)\n") == []
