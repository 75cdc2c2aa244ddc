"""The host allocator's habits."""

import ctypes
import os
import sys
from functools import cache
from typing import Final

_SETTINGS: Final = (
    (-4, "MALLOC_MMAP_MAX_", 0),
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**31 - 1),
    (-2, "MALLOC_TOP_PAD_", 2**26),
)
"""Parameter of mallopt(3) by its number in glibc's <malloc.h>, the environment variable that sets it, our value."""


@cache
def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for reuse instead of returning them to the kernel; elsewhere a no-op.

    By default a block above 32 MiB is mapped afresh at every allocation and its pages faulted in one by one: on the CPU
    that costs ten times as much as copying rows into it, at every layer and step. The process then keeps its peak
    memory until it ends. What the environment sets stays as it is.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, variable, value in _SETTINGS:
            if variable not in os.environ:
                mallopt(parameter, value)
