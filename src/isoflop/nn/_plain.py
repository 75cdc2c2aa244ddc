"""Whether a module may be computed by other means than calling it."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch

TENSORS: Final = (Tensor, nn.Parameter)
"""Types whose elements stand where `data_ptr` says; other subclasses may hold them elsewhere."""


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether calling the module would do what its class says, and nothing else: it is exactly of one of the types,
    without hooks (its own or global ones), with its class's `forward`, not compiled in place, with plain parameters.

    A `forward` that was replaced in the class itself is not seen.
    """
    return (
        type(module) in types
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and not (_torch._global_forward_hooks or _torch._global_forward_pre_hooks)
        and module._compiled_call_impl is None
        and all(type(parameter) is nn.Parameter for parameter in module._parameters.values() if parameter is not None)
    )


def are_plain(*tensors: Tensor) -> bool:
    """Whether pointers into the tensors may be used: they are torch's own, in float32 on the CPU and not empty."""
    return all(
        type(t) in TENSORS and t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() for t in tensors
    )
