"""Triton's interpreter, made quick enough for tests: half of a small kernel's time went into setting up what was set up already.

The interpreter replaces the operations of triton.language by its own for the length of a kernel, and does so anew at every call of a
function within the kernel: it walks through the members of four modules and classes to find nothing left to replace.
"""

from __future__ import annotations

import triton.language as tl
from triton.runtime import interpreter

_patch = interpreter._patch_lang


def _is_patched(language) -> bool:
    return not tl.core.is_builtin(language.load) and not tl.core.is_builtin(tl.tensor.__add__)


def _patch_what_is_not(function):
    """As triton's, for the names of triton.language that `function` sees; nothing where all of them are the interpreter's already."""
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if languages and all(_is_patched(language) for language in languages):
        return interpreter._LangPatchScope()
    return _patch(function)


def patch_once() -> None:
    interpreter._patch_lang = _patch_what_is_not
