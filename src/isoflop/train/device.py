"""The device that a model runs on, and what it says when its memory does not suffice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isoflop.errors import InputError, RunError

_LACK = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "multiplication overflow")


def choose_device(name: str | None) -> torch.device:
    """The named device, or cuda where there is one, else cpu; under torchrun cuda is this process's own.

    Raises:
        InputError: if there is no such device, or one that holds no numbers.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without numbers, `meta`, raises NotImplementedError
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise InputError(f"device is {name!r}; it must be one that torch sees here, e.g. cpu.") from None
    return device


@contextmanager
def reporting_lack_of_memory(what: str) -> Iterator[None]:
    """Turn what torch raises when memory runs out into a sentence.

    Args:
        what: what there is too little memory for, and what to do about it.

    Raises:
        RunError: if memory runs out in this context.
    """
    try:
        yield
    except (MemoryError, OverflowError) as error:
        raise RunError(f"there is too little memory for {what}.") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _LACK):
            raise RunError(f"there is too little memory for {what}.") from error
        raise


def refuse_what_cannot_fit(device: torch.device, parameters: int) -> None:
    """Raise RunError before a model is made whose weights, gradients and moments exceed the host's whole memory.

    The system would promise the memory and end the process once it is used.
    """
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return
    needed, there = 16 * parameters, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise RunError(
            f"there is too little memory for a model of {parameters:.3g} parameters: weights, gradients and moments "
            f"take {needed / 2**30:.3g} GiB and this machine has {there / 2**30:.3g} GiB; give a smaller spec."
        )
