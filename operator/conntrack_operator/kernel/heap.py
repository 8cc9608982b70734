"""The C library's heap, told to keep less: an agent needs much for a moment, and little for days.

By itself glibc gives each thread a heap of its own and keeps what was freed for later: 2.5 MB of an agent. Other C
libraries know none of this, and keep less by themselves.
"""

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX: malloc.h
_KEPT_BYTES = 65_536

_libc = ctypes.CDLL(None)


def give_back_early() -> None:
    """Use one heap for all threads that are started from now on, and give freed memory back to the kernel soon."""
    if hasattr(_libc, "mallopt"):
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _KEPT_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES)):
            _libc.mallopt(option, value)
    give_back()


def give_back() -> None:
    """Give back to the kernel what nobody needs any more; some milliseconds."""
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
