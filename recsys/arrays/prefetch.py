"""Memory prefetch hints for compiled kernels that read scattered addresses.

A loop that knows its next addresses early overlaps their memory latency with work. A hint changes no result,
and a hint for an invalid address does nothing.
"""

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LINE: Final = 64  # bytes of a cache line
# Operands of llvm.prefetch: access kind, cache kind and temporal locality.
_READ, _DATA = 0, 1
_NO_LOCALITY, _HIGH_LOCALITY = 0, 3


def _hint(locality: int, typing: Any, array: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        start = builder.bitcast(data, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [start.type], kind)
        operands = [number(value) for value in (_READ, locality, _DATA)]
        builder.call(hint, [builder.gep(start, [arguments[1]]), *operands])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _line(typing: Any, array: Any, offset: Any) -> Any:
    """Prefetches the cache line with byte ``offset`` of a contiguous array."""
    return _hint(_HIGH_LOCALITY, typing, array, offset)


def _line_once(typing: Any, array: Any, offset: Any) -> Any:
    """Like ``prefetch_line``, for data read only once: it bypasses the outer caches."""
    return _hint(_NO_LOCALITY, typing, array, offset)


prefetch_line: Any = intrinsic(_line)
prefetch_once: Any = intrinsic(_line_once)
