"""Giving memory back, where the C library can and where it cannot."""

from types import SimpleNamespace

import pytest

from conntrack_operator.kernel import heap


def test_every_thread_uses_one_heap_and_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As glibc's malloc.h has it: M_ARENA_MAX is -8, M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1."""
    said: list[tuple[int, ...]] = []
    libc = SimpleNamespace(mallopt=lambda *what: said.append(what), malloc_trim=lambda pad: said.append((pad,)))
    monkeypatch.setattr(heap, "_libc", libc)
    heap.give_back_early()
    assert said == [(-8, 1), (-3, 65_536), (-1, 65_536), (0,)]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Musl has no mallopt."""
    monkeypatch.setattr(heap, "_libc", SimpleNamespace())
    heap.give_back_early()
    heap.give_back()
