"""Training in several processes, as torchrun starts them: every rank holds the model and takes a share of the batch."""

import os
from dataclasses import dataclass

import torch
from torch import distributed

from isoflop.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    """Number of this process, from 0; rank 0 writes the run directory."""
    world: int = 1
    """Number of processes."""

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            distributed.barrier()

    def mean_(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its mean over processes, with one message for all."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def join(device: torch.device) -> Ranks:
    """This process's rank; joins the process group that torchrun announces if nobody has yet."""
    if not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL and pinned memory use the current device, for every rank cuda:0
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def choose_device(name: str | None) -> torch.device:
    """The named device, or cuda where there is one, else cpu; under torchrun cuda is this process's own.

    Raises:
        InputError: if there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device is {name!r}; it must be one that torch sees here, e.g. cpu.") from None
    return device
