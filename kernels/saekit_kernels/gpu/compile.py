"""Compile every kernel ahead of time, without a device, and read what the assembler made of it.

    TRITON_INTERPRET=0 python -m saekit_kernels.gpu.compile [--json] [--targets 80,90,100]

The interpreter shows none of this: a kernel that spills registers to memory, needs more shared
memory than the device has, or whose dot product fell back to scalar instructions is correct there
and slow (or refused) on a GPU. Each module of this folder lists its representative compilations in
`cases()`, with the block sizes that its launcher chooses for those shapes.

What is read, and why it is reliable:
  registers, stack, local
      `cuobjdump -res-usage` on the cubin, with the tool that triton ships. ptxas -v reports spills
      as well, but triton discards its log when a compilation comes from triton's cache; the cubin
      is always there. A spill needs a stack frame, so stack > 0 means a spill or an array that was
      not kept in registers: neither is acceptable. Where both were read, the bytes of stack were
      those of ptxas's spill stores.
  shared
      Bytes per block, from triton's metadata: all of it is allocated at launch, and the additional
      1 KB in the cubin of sm_90 and sm_100 is the system's. Limits per block: 163 KB on sm_80, 227
      KB on sm_90 and sm_100 (CUDA C++ programming guide, "Compute capabilities").
  tensor memory
      Columns per block on sm_100; 512 exist.
  instructions
      The matrix instructions in the PTX: mma.sync (from sm_80), wgmma (sm_90), tcgen05 (sm_100).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import saekit_kernels.gpu as package
from saekit_kernels.gpu.runtime import INTERPRETED, Case

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Compiled:
    """The result of one case on one target. Stack and local are bytes per thread, shared is bytes
    per block, tensor_memory columns per block."""

    module: str
    case: str
    kernel: str
    target: int  # 90 for sm_90
    num_warps: int
    tensor_cores: bool  # the case asks for them
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    tensor_memory: int = 0
    instructions: tuple[str, ...] = ()
    error: str | None = None  # the compiler's message when there is no cubin

    @property
    def spills(self) -> bool:
        return self.stack > 0 or self.local > 0

    def problems(self) -> list[str]:
        """Reasons not to launch this kernel on this target; empty if there are none."""
        if self.error is not None:
            return [f"does not compile: {self.error}"]
        problems = []
        if self.spills:
            problems.append(
                f"spills: {self.stack} bytes of stack, {self.local} of local memory per thread"
            )
        if self.shared > SHARED_LIMIT[self.target]:
            problems.append(
                f"needs {self.shared} bytes of shared memory, the device has"
                f" {SHARED_LIMIT[self.target]}"
            )
        if self.tensor_memory > TENSOR_MEMORY_COLUMNS:
            problems.append(
                f"needs {self.tensor_memory} columns of tensor memory, the device has"
                f" {TENSOR_MEMORY_COLUMNS}"
            )
        if self.tensor_cores and MATRIX_INSTRUCTION[self.target] not in self.instructions:
            problems.append(
                f"no {MATRIX_INSTRUCTION[self.target]} in the code, only"
                f" {', '.join(self.instructions) or 'scalar products'}"
            )
        return problems


def discover() -> dict[str, list[Case]]:
    """Module name -> its cases, for every module of saekit_kernels.gpu that has some."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if name != "compile"
    }
    return {name: module.cases() for name, module in modules.items() if hasattr(module, "cases")}


def compile_case(case: Case, target: int, module: str = "") -> Compiled:
    """Build `case` for sm_<target>. A compiler error is returned in `error`, not raised.

    Raises RuntimeError under the interpreter, where kernels are plain Python functions, and
    ValueError for a target whose limits are not known here or a signature without an argument of
    the kernel.
    """
    if INTERPRETED:
        raise RuntimeError(
            "kernels cannot be compiled under TRITON_INTERPRET=1; set it to 0 before triton is"
            " imported"
        )
    if target not in SHARED_LIMIT:
        raise ValueError(f"target must be one of {sorted(SHARED_LIMIT)}, got {target}")
    # The signature, with the alignment that the launcher would find.
    names = case.kernel.arg_names
    if set(names) != set(case.signature) | set(case.constants):
        unlisted = set(names) ^ (set(case.signature) | set(case.constants))
        raise ValueError(
            f"{case.name}: signature and constants must name every argument once; check"
            f" {sorted(unlisted)}"
        )
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        i for i, name in enumerate(names) if signature[name].startswith("*") or name in case.aligned
    ]
    source = ASTSource(
        case.kernel,
        signature,
        dict(case.constants),
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = Compiled(
        module, case.name, case.kernel.__name__, target, case.num_warps, case.tensor_cores
    )
    # Compile.
    try:
        options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
        built = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    except Exception as error:  # any pass of the compiler: the message is the result
        return replace(compiled, error=f"{type(error).__name__}: {error}")
    # Read what the assembler made of it.
    usage = _resource_usage(built.asm["cubin"])
    return replace(
        compiled,
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=built.metadata.shared,
        tensor_memory=getattr(built.metadata, "tmem_size", 0) or 0,
        instructions=tuple(
            name for name in MATRIX_INSTRUCTION.values() if name in built.asm["ptx"]
        ),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "-res-usage", str(path)], check=True, capture_output=True, text=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    if usage.keys() != {"REG", "STACK", "LOCAL"}:
        raise RuntimeError(f"cannot read the output of cuobjdump -res-usage: {text!r}")
    return usage


@cache
def _numbered_cases() -> list[tuple[str, Case]]:
    return [(module, case) for module, cases in discover().items() for case in cases]


def _compile_numbered(job: tuple[int, int]) -> Compiled:
    number, target = job
    module, case = _numbered_cases()[number]
    return compile_case(case, target, module)


def compile_all(
    targets: tuple[int, ...] = (80, 90, 100), processes: int | None = None
) -> list[Compiled]:
    """Every case of every module, for each target. Kernels do not pickle, so processes get the
    numbers of cases."""
    jobs = [(number, target) for number in range(len(_numbered_cases())) for target in targets]
    processes = processes or min(os.cpu_count() or 1, 8)
    # fork: the children inherit the imports, which take longer than compiling most kernels. No CUDA
    # context exists here.
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        return list(pool.map(_compile_numbered, jobs))


def markdown(compiled: list[Compiled]) -> str:
    """One row per case, one column per target: registers, shared memory in KB, the matrix
    instruction, and any problems in words."""
    targets = sorted({c.target for c in compiled})
    rows: dict[tuple[str, str, str], dict[int, Compiled]] = {}
    for c in compiled:
        rows.setdefault((c.module, c.kernel, c.case), {})[c.target] = c
    lines = [
        "| kernel | case | warps | " + " | ".join(f"sm_{t}" for t in targets) + " |",
        "|---|---|---|" + "---|" * len(targets),
    ]
    for (module, kernel, case), by_target in rows.items():
        warps = next(iter(by_target.values())).num_warps
        cells = " | ".join(_cell(by_target[t]) for t in targets)
        lines.append(f"| {module}.{kernel} | {case} | {warps} | {cells} |")
    return "\n".join(lines)


def _cell(c: Compiled) -> str:
    if c.error is not None:
        return "**" + c.error.splitlines()[0].replace("|", "/") + "**"
    parts = [f"{c.registers} reg", f"{c.shared / 1024:.1f} KB"]
    if c.instructions:
        parts.append("+".join(name.split(".")[0] for name in c.instructions))
    return ", ".join(parts + [f"**{problem}**" for problem in c.problems()])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compile every Triton kernel ahead of time and report what it uses."
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per case and target instead of a table",
    )
    parser.add_argument(
        "--targets",
        default="80,90,100",
        help="compute capabilities without the dot (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if INTERPRETED:
        print(
            "TRITON_INTERPRET is set: unset it or set it to 0, since interpreted kernels cannot be"
            " compiled",
            file=sys.stderr,
        )
        return 2
    compiled = compile_all(tuple(int(t) for t in options.targets.split(",")))
    print(
        json.dumps([asdict(c) | {"problems": c.problems()} for c in compiled], indent=1)
        if options.json
        else markdown(compiled)
    )
    return 1 if any(c.problems() for c in compiled) else 0


if __name__ == "__main__":
    sys.exit(main())
