"""Matrix products of row groups, each with its own matrix: the arithmetic of the experts.

Shapes: M rows grouped by expert, X experts, I input width, O output width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_matmul(x_MI: Tensor, w_XIO: Tensor, ends_X: Tensor) -> Tensor:
    """Multiply the rows of each expert with its matrix, [M, O]; expert x owns rows ends[x−1] to ends[x].

    In bfloat16 on CUDA, with widths that are multiples of 8, this is `torch.nn.functional.grouped_mm`: one kernel and
    no host synchronisation (elsewhere grouped_mm is itself a loop). Otherwise a loop over experts whose products are
    written straight into their slice of the result; off the CPU it waits for the counts.
    """
    if x_MI.is_cuda and x_MI.dtype == torch.bfloat16 and not (w_XIO.shape[1] % 8 or w_XIO.shape[2] % 8):
        return F.grouped_mm(x_MI, w_XIO, offs=ends_X)
    product: Tensor = _LoopedMatmul.apply(x_MI, w_XIO, ends_X)
    return product


def _sizes(ends_X: Tensor) -> list[int]:
    ends: Sequence[int] = ends_X.tolist()
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class _LoopedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, w_XIO: Tensor, ends_X: Tensor) -> Tensor:
        sizes = _sizes(ends_X)
        ctx.save_for_backward(x_MI, w_XIO)
        ctx.sizes = sizes
        y_MO = x_MI.new_empty(x_MI.shape[0], w_XIO.shape[2])
        for x, w, y in zip(x_MI.split(sizes), w_XIO.unbind(), y_MO.split(sizes), strict=True):
            if x.shape[0]:
                torch.mm(x, w, out=y)
        return y_MO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, w_XIO = ctx.saved_tensors
        g_MO = gradients[0].contiguous()
        dx_MI = torch.empty_like(x_MI) if ctx.needs_input_grad[0] else None
        dw_XIO = torch.empty_like(w_XIO) if ctx.needs_input_grad[1] else None
        if dx_MI is not None:
            for g, w, dx in zip(g_MO.split(ctx.sizes), w_XIO.mT.unbind(), dx_MI.split(ctx.sizes), strict=True):
                if g.shape[0]:
                    torch.mm(g, w, out=dx)
        if dw_XIO is not None:
            for x, g, dw in zip(x_MI.split(ctx.sizes), g_MO.split(ctx.sizes), dw_XIO.unbind(), strict=True):
                if x.shape[0]:
                    torch.mm(x.t(), g, out=dw)
                else:
                    dw.zero_()
        return dx_MI, dw_XIO, None
