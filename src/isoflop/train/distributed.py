"""Training in several processes, as torchrun starts them: every rank holds the model and takes a share of the batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


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

    def sum_(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over processes."""
        if self.world > 1:
            distributed.all_reduce(tensor)

    def mean_(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its mean over processes, with one message for all."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process's rank, in the process group that torchrun announces.

    A group that was there before is used and stays; one that is made here ends with the context.
    """
    if not distributed.is_available():
        yield Ranks()
        return
    ours = not distributed.is_initialized()
    if ours:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield Ranks()
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL and pinned memory use the current device, for every rank cuda:0
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        if ours:
            distributed.destroy_process_group()
