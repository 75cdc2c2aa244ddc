"""The host allocator's habits."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


@cache
def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for reuse instead of returning them to the kernel; elsewhere a no-op.

    By default a block above 32 MiB is mapped afresh at every allocation and its pages faulted in one by one: on the CPU
    that costs ten times as much as copying rows into it, at every layer and step. The process then keeps its peak
    memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
