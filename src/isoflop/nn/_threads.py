"""Many independent pieces of CPU work, each on one thread from beginning to end.

torch divides every single operation among its threads, which costs a meeting of all threads each time and moves data
between their caches. Where the work falls into pieces anyway, a thread that does a whole piece keeps it in its own.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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


def threads_to_spread() -> int:
    """How many threads `spread` uses at most."""
    return torch.get_num_threads() if _settings() is not None else 1


def spread(pieces: Sequence[Piece], work: Callable[[Iterator[Piece]], None]) -> None:
    """Let as many threads as torch would use call `work` once each; they take pieces from one iterator, in order.

    Within, torch's operations keep to the one thread, and build no graph. A single piece, or a machine whose threads
    cannot be told, is worked on here, by operations that use all threads.
    """
    shared = iter(list(pieces))  # next() of a list's iterator is atomic
    n_threads = min(threads_to_spread(), len(pieces))
    if n_threads == 1:
        with torch.no_grad():
            work(shared)
        return
    inference = torch.is_inference_mode_enabled()
    others: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # at the interpreter's end no thread can be started: then this one does it all
            for _ in range(n_threads - 1):
                others.append(_pool(n_threads - 1).submit(_alone, work, shared, inference))
        _alone(work, shared, inference)
    finally:
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


def _alone(work: Callable[[Iterator[Piece]], None], shared: Iterator[Piece], inference: bool) -> None:
    with _one_thread(), torch.inference_mode(inference), torch.no_grad():
        work(shared)


@contextmanager
def _one_thread() -> Iterator[None]:
    settings = _settings()
    assert settings is not None
    before = torch.get_num_threads()  # in a new thread this also makes torch set its own number, which comes first
    mkl_before = 0
    try:
        settings.omp_set(1)
        mkl_before = settings.mkl_set(1)
        yield
    finally:
        settings.omp_set(before)
        settings.mkl_set(mkl_before)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="isoflop")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads
