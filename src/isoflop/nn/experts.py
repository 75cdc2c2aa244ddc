"""All experts of a layer in one pass over blocks of rows: gather, multiply, activate, multiply.

What one block of experts needs fits in the caches, so that of the rows in expert order only the outputs and what the
backward pass needs go to memory (all go in one block where there is little to do); tokens' rows are gathered again
rather than kept.

Shapes: N tokens, X experts, M assigned (token, expert) pairs, D d_model, F expert width, H columns of `w_up` (2F for
swiglu, else F), R rows of a block.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isoflop.nn._threads import spread, threads_to_spread
from isoflop.nn.dispatch import Assignment, sum_rows
from isoflop.nn.feed_forward import ALIGNED, activate
from isoflop.nn.grouped import SLACK, LoneRows, RowGroups, can_batch, is_watched, sizes_of
from isoflop.spec.feed_forward import Activation

_BLOCK: Final = 2**21
"""Most elements of the rows of one block, in all their widths: a few times what a second-level cache holds."""

_LITTLE: Final = 2**25
"""Elements of weights to read, with what rows add, below which the threads' meeting would cost more than it gives."""

_ROWS_PER_READ: Final = 8
"""Rows whose products with a weight take about as long as reading it."""

_UNEVEN: Final = 1.5
"""Times the even share of a thread that one expert may have."""


def experts_in_blocks(
    x_ND: Tensor,
    w_up_XDH: Tensor,
    w_down_XFD: Tensor,
    gates_M: Tensor | None,
    assignment: Assignment,
    activation: Activation,
) -> Tensor:
    """Σ over a token's experts of gate · act(x · w_up) · w_down, [N, D]; zero for a token without any.

    Without gates the rows act(x · w_up) · w_down themselves, [M, D]. Gates multiply the hidden rows, which are narrower
    than the outputs. For the CPU: it reads the counts of rows.
    """
    inputs = (x_ND, w_up_XDH, w_down_XFD, gates_M)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y: Tensor = _Experts.apply(*inputs, assignment, activation, keep)
    return y


class ExpertsOfFew:
    """As `experts_in_blocks` for a few tokens that each chose k experts, without gradients and without any sorting.

    While sampling, fewer rows meet an expert than would be worth grouping. The weights must stay where they are while
    it lives. Only where `can_take` says so.
    """

    def __init__(
        self, w_up_XDH: Tensor, w_down_XFD: Tensor, most_tokens: int, top_k: int, activation: Activation
    ) -> None:
        places_M = np.arange(most_tokens * top_k)
        self._up = LoneRows(w_up_XDH, places_M // top_k)
        self._down = LoneRows(w_down_XFD, places_M)
        self._activation = activation

    @staticmethod
    def can_take(x_ND: Tensor, w_up_XDH: Tensor, w_down_XFD: Tensor) -> bool:
        """Whether this machine and these tensors allow it."""
        return LoneRows.can_take(w_up_XDH, w_down_XFD) and can_batch(x_ND)

    def __call__(self, x_ND: Tensor, gates_Nk: Tensor, experts_Nk: Tensor) -> Tensor:
        """Σ over a token's experts of gate · act(x · w_up) · w_down, [N, D]."""
        which_M = experts_Nk.reshape(-1).numpy()
        h_MF = activate(self._up(x_ND, which_M), self._activation) * gates_Nk.reshape(-1, 1)
        return self._down(h_MF, which_M).view(*experts_Nk.shape, -1).sum(1)


class _Block(NamedTuple):
    experts: slice
    rows: slice
    groups: RowGroups


def _blocks(sizes: list[int], d_model: int, d_expert: int, up: int) -> list[_Block]:
    """Consecutive experts whose rows make a block, largest first; one block of all where that is the faster way.

    So it is where there is little to do, or one expert has so much that threads could not share out the rest evenly:
    then each product is divided among them.
    """
    n_rows, n_filled = sum(sizes), sum(map(bool, sizes))
    threads = threads_to_spread()
    weights = d_model * (up + d_expert)
    if (
        is_watched()
        or n_filled * weights + n_rows * weights // _ROWS_PER_READ < _LITTLE
        or max(sizes) * threads > _UNEVEN * n_rows
    ):
        return [_Block(slice(0, len(sizes)), slice(0, n_rows), RowGroups(sizes))]
    most = min(_BLOCK // (2 * d_model + up + d_expert), -(-n_rows // (2 * threads)))
    found: list[_Block] = []
    first, start, rows = 0, 0, 0
    for expert, size in enumerate(sizes):
        if rows and rows + size > most:
            found.append(_Block(slice(first, expert), slice(start, start + rows), RowGroups(sizes[first:expert])))
            first, start, rows = expert, start + rows, 0
        rows += size
    found.append(_Block(slice(first, len(sizes)), slice(start, start + rows), RowGroups(sizes[first:])))
    found.sort(key=lambda block: -block.groups.n_rows)
    return found


def _gate(hidden_RH: Tensor, spare_RF: Tensor) -> Tensor:
    """The gate's columns, copied where strided rows would be slow to take a silu of."""
    gate_RF = hidden_RH[:, : spare_RF.shape[1]]
    return spare_RF.copy_(gate_RF) if spare_RF.shape[1] % ALIGNED else gate_RF


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        w_up_XDH: Tensor,
        w_down_XFD: Tensor,
        gates_M: Tensor | None,
        assignment: Assignment,
        activation: Activation,
        keep: bool,
    ) -> Tensor:
        n_rows, (_, d_model, up), d_expert = len(assignment.tokens_M), w_up_XDH.shape, w_down_XFD.shape[1]
        blocks = _blocks(sizes_of(assignment.ends_X), d_model, d_expert, up)
        most = max(block.groups.n_rows for block in blocks)
        hidden_MH = x_ND.new_empty(n_rows if keep else 0, up)
        y_MD = x_ND.new_empty(n_rows, d_model)

        def work(pieces: Iterator[_Block]) -> None:
            x_buffer, h_buffer = x_ND.new_empty(most + SLACK, d_model), x_ND.new_empty(most + SLACK, d_expert)
            hidden_buffer = None if keep else x_ND.new_empty(most, up)
            for experts, rows, groups in pieces:
                count = groups.n_rows
                x_RD, h_RF = x_buffer[:count], h_buffer[:count]
                hidden_RH = hidden_MH[rows] if hidden_buffer is None else hidden_buffer[:count]
                torch.index_select(x_ND, 0, assignment.tokens_M[rows], out=x_RD)
                groups.times(x_buffer, w_up_XDH[experts], out=hidden_RH)
                if activation == "swiglu":
                    torch.ops.aten.silu.out(_gate(hidden_RH, h_RF), out=h_RF)
                    h_RF.mul_(hidden_RH[:, d_expert:])
                elif activation == "gelu":
                    torch.ops.aten.gelu.out(hidden_RH, out=h_RF)
                else:
                    torch.clamp_min(hidden_RH, 0, out=h_RF)
                if gates_M is not None:
                    h_RF.mul_(gates_M[rows, None])
                groups.times(h_buffer, w_down_XFD[experts], out=y_MD[rows])

        spread(blocks, work)
        if keep:
            ctx.save_for_backward(
                x_ND,
                w_up_XDH,
                w_down_XFD,
                gates_M,
                hidden_MH,
                assignment.tokens_M,
                assignment.rows_M,
                assignment.starts_N,
                assignment.ends_X,
            )
            ctx.activation = activation
        return y_MD if gates_M is None else sum_rows(y_MD, assignment.rows_M, assignment.starts_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w_up_XDH, w_down_XFD, gates_M, hidden_MH, tokens_M, rows_M, starts_N, ends_X = ctx.saved_tensors
        activation, gradient = ctx.activation, gradients[0]
        wants_x, wants_up, wants_down, wants_gates = ctx.needs_input_grad[:4]
        (n_rows, up), (_, d_expert, d_model) = hidden_MH.shape, w_down_XFD.shape
        blocks = _blocks(sizes_of(ends_X), d_model, d_expert, up)
        most = max(block.groups.n_rows for block in blocks)
        if gates_M is None:
            gradient = gradient.contiguous()
        dx_MD = x_ND.new_empty(n_rows, d_model) if wants_x else None
        dw_up_XDH = w_up_XDH.new_empty(w_up_XDH.shape) if wants_up else None
        dw_down_XFD = w_down_XFD.new_empty(w_down_XFD.shape) if wants_down else None
        d_gates_M = gates_M.new_empty(gates_M.shape) if wants_gates else None

        def work(pieces: Iterator[_Block]) -> None:
            g_buffer, x_buffer = (x_ND.new_empty(most + SLACK, d_model) for _ in range(2))
            narrow = [x_ND.new_empty(most, d_expert) for _ in range(5)]
            d_hidden_buffer = x_ND.new_empty(most + SLACK, up)
            for experts, rows, groups in pieces:
                count = groups.n_rows
                dh_RF, act_RF, h_RF, spare_RF, gate_buffer_RF = (buffer[:count] for buffer in narrow)
                hidden_RH, d_hidden_RH = hidden_MH[rows], d_hidden_buffer[:count]
                if gates_M is None:
                    g_RD = gradient[rows]
                else:
                    g_RD = torch.index_select(gradient, 0, tokens_M[rows], out=g_buffer[:count])
                groups.times(g_RD if gates_M is None else g_buffer, w_down_XFD[experts].mT, out=dh_RF)
                if activation == "swiglu":
                    gate_RF = _gate(hidden_RH, gate_buffer_RF)
                    torch.ops.aten.silu.out(gate_RF, out=act_RF)
                    torch.mul(act_RF, hidden_RH[:, d_expert:], out=h_RF)
                elif activation == "gelu":
                    torch.ops.aten.gelu.out(hidden_RH, out=h_RF)
                else:
                    torch.clamp_min(hidden_RH, 0, out=h_RF)
                if d_gates_M is not None:
                    torch.mul(dh_RF, h_RF, out=spare_RF)
                    torch.sum(spare_RF, 1, out=d_gates_M[rows])
                if gates_M is not None:
                    dh_RF.mul_(gates_M[rows, None])
                    h_RF.mul_(gates_M[rows, None])
                if dw_down_XFD is not None:
                    groups.outer(h_RF, g_RD, out=dw_down_XFD[experts])
                if dx_MD is None and dw_up_XDH is None:
                    continue
                if activation == "swiglu":
                    torch.mul(dh_RF, act_RF, out=d_hidden_RH[:, d_expert:])
                    dh_RF.mul_(hidden_RH[:, d_expert:])
                    torch.ops.aten.silu_backward.grad_input(dh_RF, gate_RF, grad_input=spare_RF)
                    d_hidden_RH[:, :d_expert].copy_(spare_RF)
                elif activation == "gelu":
                    torch.ops.aten.gelu_backward.grad_input(dh_RF, hidden_RH, grad_input=d_hidden_RH)
                else:
                    torch.ops.aten.threshold_backward.grad_input(dh_RF, hidden_RH, 0, grad_input=d_hidden_RH)
                if dw_up_XDH is not None:
                    x_RD = torch.index_select(x_ND, 0, tokens_M[rows], out=x_buffer[:count])
                    groups.outer(x_RD, d_hidden_RH, out=dw_up_XDH[experts])
                if dx_MD is not None:
                    groups.times(d_hidden_buffer, w_up_XDH[experts].mT, out=dx_MD[rows])

        spread(blocks, work)
        dx_ND = None if dx_MD is None else sum_rows(dx_MD, rows_M, starts_N)
        return dx_ND, dw_up_XDH, dw_down_XFD, d_gates_M, None, None, None
