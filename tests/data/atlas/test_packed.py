"""Lent arrays never change under somebody who still looks at them."""

import numpy as np

from scfusion_fm.data.atlas import packed
from scfusion_fm.data.atlas.packed import BufferPool


def test_arrays_come_back_only_when_nobody_holds_them():
    pool = BufferPool()
    first = pool.lend((4, 3), np.float32)
    place = first.ctypes.data
    assert pool.lend((4, 3), np.float32).ctypes.data != place
    part = first[1:, 2]
    del first
    held = [pool.lend((4, 3), np.float32) for _ in range(3)]
    assert place not in [a.ctypes.data for a in held], "a view holds it"
    view = memoryview(part)
    del part
    assert pool.lend((4, 3), np.float32).ctypes.data != place
    del view
    others = [pool.lend((4, 3), np.float32) for _ in range(4)]
    assert place in [a.ctypes.data for a in others]
    assert len({a.ctypes.data for a in others}) == 4


def test_arrays_have_the_shape_and_type_that_were_asked_for(monkeypatch):
    monkeypatch.setattr(packed, "REMEMBERED", 2)
    pool = BufferPool()
    for shape, dtype in (((2, 3), np.float32), ((2, 3), np.bool_), ((3, 2), np.bool_), ((2, 3), np.float32)):
        array = pool.lend(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
