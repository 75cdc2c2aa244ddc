"""Matrix product with a weight, by the library that is fastest at it on this processor.

Shapes: N rows, D columns of the weight, F its rows.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.nn import _onednn
from isoflop.nn.grouped import is_watched

_MANY: Final = 128
"""Rows from which on oneDNN may order W anew for every product, and make a kernel for their number."""

_WIDE: Final = 2**16
"""Elements of a weight whose gradient, a sum over rows, oneDNN computes faster too."""


def linear(x: Tensor, w_FD: Tensor) -> Tensor:
    """x·Wᵀ, [..., D] → [..., F].

    For many rows in float32 that is oneDNN on processors that MKL does not know well (see _onednn).
    """
    if x.device.type != "cpu" or is_watched():
        return F.linear(x, w_FD)
    n_rows = x.numel() // x.shape[-1]
    if not _is_faster_by_onednn(x, w_FD, n_rows):
        return F.linear(x, w_FD)
    y_NF: Tensor = _Product.apply(x.reshape(n_rows, x.shape[-1]), w_FD)
    return y_NF.view(*x.shape[:-1], w_FD.shape[0])


def _is_faster_by_onednn(x: Tensor, w_FD: Tensor, n_rows: int) -> bool:
    return (
        n_rows >= _MANY
        and n_rows * w_FD.numel() >= _onednn.WORTH
        and x.dtype == w_FD.dtype == torch.float32
        and _onednn.is_preferred()
        and not torch.is_autocast_enabled("cpu")
    )


class _Product(torch.autograd.Function):
    """x·Wᵀ, and both gradients by products of the same kind."""

    @staticmethod
    def forward(x_ND: Tensor, w_FD: Tensor) -> Tensor:
        return _onednn.product(x_ND, w_FD)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, w_FD = ctx.saved_tensors
        g_NF = gradients[0]
        dx_ND: Tensor | None = None
        dw_FD: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_ND = _Product.apply(g_NF, w_FD.t())
        if ctx.needs_input_grad[1]:
            dw_FD = _Product.apply(g_NF.t(), x_ND.t()) if w_FD.numel() >= _WIDE else g_NF.t() @ x_ND
        return dx_ND, dw_FD
