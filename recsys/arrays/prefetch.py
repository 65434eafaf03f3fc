"""Memory prefetch hints for compiled kernels that read scattered addresses. A hint changes no result, also
for an invalid address."""

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LINE: Final = 64  # bytes of a cache line
# Operands of llvm.prefetch: access kind, temporal locality and cache kind.
_READ, _HIGH_LOCALITY, _DATA = 0, 3, 1


def _line(typing: Any, array: Any, offset: Any) -> Any:
    """Prefetches the cache line with byte ``offset`` of a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        start = builder.bitcast(data, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [start.type], kind)
        operands = [number(value) for value in (_READ, _HIGH_LOCALITY, _DATA)]
        builder.call(hint, [builder.gep(start, [arguments[1]]), *operands])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


prefetch_line: Any = intrinsic(_line)
