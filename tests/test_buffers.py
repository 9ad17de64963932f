"""Memory that is used again: never while anybody can still see it, and not more of it than is said."""

import gc
import threading

import numpy as np
import pytest

from fastrnn.layers import buffers

F4 = np.dtype("float32")
SIZES = [n // 4 + 9 for n in (buffers.SMALLEST, 3 * buffers.SMALLEST, buffers.LARGE, buffers.HUGE)]  # of float32


def address(a):
    return a.__array_interface__["data"][0]


def kept():
    """Bytes in all lists."""
    return sum(size * len(blocks) for size, blocks in buffers._free.items())


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    buffers._free.clear()
    yield
    buffers._free.clear()


@pytest.mark.parametrize("size", SIZES)
def test_memory_is_used_again_when_the_last_view_is_gone(size):
    """By the next array of about that size; not before."""
    a = buffers.empty((size, 1), F4)
    where, view = address(a), a.reshape(-1)[3:].view(np.uint8)[::2]
    assert address(buffers.empty(size, F4)) != where
    del a
    gc.collect()
    others = [buffers.empty(size, F4) for _ in range(3)]
    assert where not in map(address, others)
    beside = view.base.base[5:]  # of the owner itself: it holds the memory, and gives nothing back
    del beside
    gc.collect()
    assert not kept()
    del view
    assert address(buffers.empty(size - 5, F4)) == where


@pytest.mark.parametrize("size", [0, 1, 1000, *SIZES])
def test_arrays_are_ordinary(size):
    """Shape, type, writable, contiguous; `aligned` on a cache line; large ones on a huge page."""
    a, b = buffers.empty((size, 2), F4), buffers.aligned(size, F4)
    for one, shape in ((a, (size, 2)), (b, (size,))):
        assert (type(one), one.shape, one.dtype) == (np.ndarray, shape, F4)
        assert one.flags.behaved
        assert one.flags.c_contiguous
        one[...] = 3.0
        assert (one == 3.0).all()
    assert address(b) % 64 == 0
    if b.nbytes >= buffers.LARGE:
        assert address(b) % buffers.HUGE == 0


def test_what_is_kept_is_bounded(monkeypatch):
    """Whatever was in use at once: after EVERY more arrays at most KEEP bytes are kept."""
    monkeypatch.setattr(buffers, "KEEP", 40 * buffers.SMALLEST)
    held = [buffers.empty(buffers.SMALLEST * k // 8, F4) for k in range(2, 30)]
    assert not kept()
    del held
    assert kept() > buffers.KEEP
    for _ in range(buffers.EVERY):
        buffers.empty(SIZES[0], F4)
    assert 0 < kept() <= buffers.KEEP


def test_sizes_that_vary_share_lists():
    """At most four to the octave."""
    for size in range(buffers.SMALLEST, 16 * buffers.SMALLEST, 997):
        buffers.empty(size, np.dtype("uint8"))
    assert len(buffers._free) <= 4 * 4 + 1


def test_no_two_threads_have_the_same_memory():
    """Each fills its arrays with its own number and finds it there, while all take and drop."""
    found = []

    def work(number):
        rng, held = np.random.default_rng(number), []
        for _ in range(400):
            a = buffers.empty(int(rng.choice(SIZES[:3])), F4)
            a[:: 1 << 10] = number
            held.append(a)
            if len(held) > 5:
                found.append((held.pop(int(rng.integers(5)))[:: 1 << 10] == number).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 * 395
    assert all(found)
