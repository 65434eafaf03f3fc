"""Hints to the processor that memory will be read soon, for kernels that jump about in much of it.

Where a loop knows its next places before it is done with the last, asking for them early lets the memory work
meanwhile. A hint changes no result, and one for an address that isn't there does nothing.
"""

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LINE: Final = 64  # bytes that come at once
_READ, _DATA = 0, 1  # llvm.prefetch: what for, in which cache
_PASSES, _STAYS = 0, 3  # … and for how long


def _hint(stays: int, typing: Any, array: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        start = builder.bitcast(data, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [start.type], kind)
        how = [number(value) for value in (_READ, stays, _DATA)]
        builder.call(hint, [builder.gep(start, [arguments[1]]), *how])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _soon(typing: Any, array: Any, offset: Any) -> Any:
    """Asks for the line with byte ``offset`` of an array in one piece."""
    return _hint(_STAYS, typing, array, offset)


def _once(typing: Any, array: Any, offset: Any) -> Any:
    """As ``soon``, for what is read once and not again: it passes through the first cache alone, and pushes
    nothing out of the others that the rest of a request needs again."""
    return _hint(_PASSES, typing, array, offset)


soon: Any = intrinsic(_soon)
once: Any = intrinsic(_once)
