"""
Sixteen float32 numbers side by side, as processors calculate with them: for compiled loops that keep sums in registers.

Arrays are reached through pointers, without any check; an array must be held by who calls the compiled loop.
"""

from functools import partial

try:  # what a model directory imports outside of a try must be installed before transformers loads it
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, models, register_model
except ImportError:
    raise

WIDTH = 16
POINTER = types.CPointer(types.float32)
_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INDEX = ir.IntType(32)

compiled = partial(numba.njit, nogil=True, cache=True, error_model="numpy")
inlined = partial(compiled, forceinline=True)


class Lanes(types.Type):
    """The type of a variable that holds them."""

    def __init__(self):
        super().__init__("Lanes")


LANES = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """How a variable is held: as it is."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


def _fill(builder, number):
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _INDEX(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INDEX, WIDTH), [0] * WIDTH))


@intrinsic
def pointer(typing, array):
    """Point to the first number of an array."""

    def build(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return POINTER(array), build


@intrinsic
def move(typing, start, places):
    """Point to a later place."""
    return POINTER(POINTER, types.intp), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


@intrinsic
def load(typing, start, place):
    """Read lanes from a place on."""

    def build(context, builder, signature, args):
        at = builder.bitcast(builder.gep(args[0], [args[1]]), _VECTOR.as_pointer())
        return builder.load(at, align=4)

    return LANES(POINTER, types.intp), build


@intrinsic
def store(typing, start, place, lanes):
    """Write lanes from a place on."""

    def build(context, builder, signature, args):
        at = builder.bitcast(builder.gep(args[0], [args[1]]), _VECTOR.as_pointer())
        builder.store(args[2], at, align=4)
        return context.get_dummy_value()

    return types.none(POINTER, types.intp, LANES), build


@intrinsic
def spread(typing, start, place):
    """Read one number into all lanes."""

    def build(context, builder, signature, args):
        return _fill(builder, builder.load(builder.gep(args[0], [args[1]])))

    return LANES(POINTER, types.intp), build


@intrinsic
def fill(typing, number):
    """Give a number in all lanes."""
    return LANES(types.float32), lambda context, builder, signature, args: _fill(builder, args[0])


@intrinsic
def multiply_add(typing, x, y, z):
    """Give x * y + z, rounded once."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), args)

    return LANES(LANES, LANES, LANES), build


@intrinsic
def add(typing, x, y):
    """Give x + y."""
    return LANES(LANES, LANES), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing, x, y):
    """Give x - y."""
    return LANES(LANES, LANES), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing, x, y):
    """Give x * y."""
    return LANES(LANES, LANES), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def total(typing, x):
    """Sum all lanes, in an order that is always the same."""

    def build(context, builder, signature, args):
        lanes, width = args[0], WIDTH
        while width > 1:
            width //= 2
            halves = ([*range(width)], [*range(width, 2 * width)])
            low, high = (ir.Constant(ir.VectorType(_INDEX, width), half) for half in halves)
            lanes = builder.fadd(builder.shuffle_vector(lanes, lanes, low), builder.shuffle_vector(lanes, lanes, high))
        return builder.extract_element(lanes, _INDEX(0))

    return types.float32(LANES), build
