"""The scale of each lane of a vector, from the scales of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from edgegemma.kernels import simd
from edgegemma.kernels.simd import ARRAY, Floats


@simd._verb(Floats, ARRAY, types.intp, ARRAY, types.intp, types.intp)
def lane_scales(b: Any, scale: Any, base: Any, index: Any, i: Any, count: Any) -> Any:
    """Give each lane its scale ``scale[base + index[i + lane]]``.

    ``count`` says what is known of the index: 1, 2, 4 or 8 scales in a row, each for as many
    lanes, cost one load and one shuffle. Any other count is read lane by lane.
    """
    first = b.add(base, b.sext(b.load(simd._one(b, index, i, simd.I32)), base.type))
    counts = [n for n in (1, 2, 4, 8) if n <= simd.LANES]
    done = b.append_basic_block("scales")
    slow = b.append_basic_block("scales.lanes")
    switch = b.switch(count, slow)
    found = []
    for n in counts:
        block = b.append_basic_block(f"scales.{n}")
        switch.add_case(ir.Constant(count.type, n), block)
        b.position_at_end(block)
        found.append((_spread(b, scale, first, n), b.block))
        b.branch(done)
    b.position_at_end(slow)
    found.append((_gather(b, scale, base, index, i), b.block))
    b.branch(done)
    b.position_at_end(done)
    result = b.phi(simd.VF)
    for value, block in found:
        result.add_incoming(value, block)
    return result


def _spread(b: Any, scale: Any, first: Any, count: int) -> Any:
    if count == 1:
        return simd._splat(b, b.load(simd._one(b, scale, first, simd.F32)), simd.VF)
    few = simd._load(b, scale, first, ir.VectorType(simd.F32, count))
    index = np.repeat(np.arange(count), simd.LANES // count).tolist()
    empty = ir.Constant(few.type, ir.Undefined)
    return b.shuffle_vector(few, empty, ir.Constant(ir.VectorType(simd.I32, simd.LANES), index))


def _gather(b: Any, scale: Any, base: Any, index: Any, i: Any) -> Any:
    result = ir.Constant(simd.VF, ir.Undefined)
    for lane in range(simd.LANES):
        place = b.load(simd._one(b, index, b.add(i, ir.Constant(i.type, lane)), simd.I32))
        value = b.load(simd._one(b, scale, b.add(base, b.sext(place, base.type)), simd.F32))
        result = b.insert_element(result, value, ir.Constant(simd.I32, lane))
    return result
