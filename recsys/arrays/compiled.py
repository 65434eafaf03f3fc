"""Decorator of all numba kernels, and the SplitMix64 functions that they share.

Every kernel has an explicit signature, so it is compiled (or loaded from the cache on disk) at import and
never in the middle of a step. No fast maths: each loop is IEEE arithmetic in the order written, whatever the
machine's vector width.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher
from numba.core.typeinfer import register_dispatcher
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def _load_without_scipy() -> None:
    """Imports numba's array functions without SciPy's linear algebra, which they look for because of
    covariances alone: half a second and 13 MB in each process."""
    name = "scipy.linalg"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[name]


_load_without_scipy()

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_2_POW_53 = float(1 << 53)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LIBRARIES = ("builtins", "math", "numba", "numpy")


def kernel(signature: Any) -> Callable[[F], F]:
    """Compiles a function; cached on disk if numba finds a writable cache folder."""

    def compiled(function: F) -> F:
        dispatcher: Any = njit(nogil=True)(function)
        if hasattr(dispatcher, "compile"):  # a plain function under NUMBA_DISABLE_JIT
            _compile(dispatcher, signature)
        return dispatcher  # type: ignore[no-any-return]

    return compiled


def _compile(dispatcher: Any, signature: Any) -> None:
    with suppress(RuntimeError):  # a read-only install without a home: compile in every process
        dispatcher._cache = _KernelCache(dispatcher.py_func)
    with register_dispatcher(dispatcher):
        dispatcher.compile(signature)
        dispatcher.disable_compile()


class _KernelCache(FunctionCache):
    """numba's cache on disk, invalidated by callees and constants of other files too: numba compares only the
    file that defines the function, although compiled code contains the callees."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file = IndexDataCacheFile(  # type: ignore[no-untyped-call]
            self._cache_path, self._impl.filename_base, source_digest(function)
        )


def source_digest(function: Callable[..., Any]) -> bytes:
    """Digest of all source that a kernel is compiled from: its file, its callees' files, its constants."""
    digest = hashlib.sha256(_file_digest(function.__code__.co_filename))
    for name, value in _references(function):
        digest.update(name.encode())
        if isinstance(value, Dispatcher):
            digest.update(source_digest(value.py_func))
        elif isinstance(value, ModuleType) or callable(value):
            module = value.__name__ if isinstance(value, ModuleType) else value.__module__
            if module.partition(".")[0] not in _LIBRARIES:
                digest.update(_file_digest(sys.modules[module].__file__ or ""))
        else:
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.digest()


def _references(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Global and closure variables that the function's code names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _file_digest(path: str) -> bytes:
    return _content_digest(Path(path), Path(path).stat().st_mtime_ns)


@cache
def _content_digest(path: Path, mtime_ns: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def read_only(kind: Any, dimensions: int) -> Any:
    """Type of an input array that may be read-only or writable."""
    return types.Array(kind, dimensions, "C", readonly=True)


@kernel(types.uint64(types.uint64))
def mix(value: Any) -> Any:
    """SplitMix64's finaliser, equal to ``recsys.events.hashing.splitmix64``."""
    z = value + GAMMA
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@kernel(types.float64(types.uint64))
def unit(cell: Any) -> Any:
    """Uniform draw in [0, 1) of a cell, as in ``recsys.events.hashing.uniforms``."""
    return np.float64(mix(cell) >> np.uint64(11)) / _2_POW_53


def _pointer(typing: Any, address: Any) -> Any:
    """The address of an array as what ``numba.carray`` takes. Its owner must stay alive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


pointer: Any = intrinsic(_pointer)
