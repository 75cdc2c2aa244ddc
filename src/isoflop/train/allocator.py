"""Settings of the C library's allocator that make training steps on the CPU faster."""

import os
import platform
import sys

_LARGE = str(2**30)
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_VALUES = (_LARGE, _LARGE, str(2**26))


def allocator_environment() -> dict[str, str]:
    """Environment variables for a worker process that trains on the CPU.

    By default glibc maps every large tensor freshly and returns it at once, so each step pays page faults for all its
    activations; with these thresholds raised the memory stays in the heap (mallopt(3)). They must be set before the
    process starts. Empty off Linux and glibc; a variable that is already set is left out.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return {}
    return {name: value for name, value in zip(_VARIABLES, _VALUES, strict=True) if name not in os.environ}
