"""Many independent pieces of CPU work, each on one thread from beginning to end.

torch divides every single operation among its threads, which costs a meeting of all threads each time and moves data
between their caches. Where the work falls into pieces anyway, a thread that does a whole piece keeps it in its own.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

Piece = TypeVar("Piece")


class _Settings(NamedTuple):
    """How a thread of its own says how many others an operation that it starts may use."""

    omp_set: Callable[[int], None]
    mkl_set: Callable[[int], int]


@cache
def _settings() -> _Settings | None:
    """None where torch was built without OpenMP or MKL: then nothing is known about its threads."""
    config = torch.__config__.show()
    if "BLAS_INFO=mkl" not in config or "USE_OPENMP=ON" not in config:
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return _Settings(library.omp_set_num_threads, library.MKL_Set_Num_Threads_Local)
    except (OSError, AttributeError):
        return None


def can_spread() -> bool:
    """Whether `spread` can use several threads."""
    return torch.get_num_threads() > 1 and _settings() is not None


def spread(pieces: Iterable[Piece], work: Callable[[Iterator[Piece]], None]) -> None:
    """Let every thread that torch would use call `work` once; each takes pieces from the shared iterator.

    Within, torch's operations keep to the one thread, and build no graph. Pieces are taken in order, so give the
    largest first. `work` is called in this thread alone if there is one thread, or torch's cannot be told.
    """
    shared = iter(list(pieces))  # next() of a list's iterator is atomic
    settings = _settings()
    n_threads = torch.get_num_threads() if settings is not None else 1
    if n_threads == 1:
        with torch.no_grad():
            work(shared)
        return
    pool = _pool(n_threads - 1)
    others = [pool.submit(_alone, work, shared) for _ in range(n_threads - 1)]
    try:
        _alone(work, shared)
    finally:
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


def _alone(work: Callable[[Iterator[Piece]], None], shared: Iterator[Piece]) -> None:
    with _one_thread(), torch.no_grad():
        work(shared)


@contextmanager
def _one_thread() -> Iterator[None]:
    settings = _settings()
    assert settings is not None
    before = torch.get_num_threads()  # in a new thread this also makes torch set its own number, which comes first
    settings.omp_set(1)
    mkl_before = settings.mkl_set(1)
    try:
        yield
    finally:
        settings.omp_set(before)
        settings.mkl_set(mkl_before)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="isoflop")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads
