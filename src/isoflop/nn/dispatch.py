"""Moving rows between token order and expert order, with gathers alone in forward and backward.

An assignment is a set of (token, expert) pairs. Rows in expert order are grouped by expert; every pair is one row.
Because each pair has its one place in both orders, the gradient of a gather is again a gather, or a sum over
consecutive gathered rows (`embedding_bag`): no scatter, no index_add, hence no atomics and no random order of sums.

Shapes: N tokens, X experts, M assigned pairs, D d_model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """Which token stands in which row of expert order."""

    tokens_M: Tensor
    """Token of each row; rows are grouped by expert, in ascending order of experts."""
    experts_M: Tensor
    """Expert of each row."""
    ends_X: Tensor
    """int32: one past the last row of each expert."""
    rows_M: Tensor
    """All rows, grouped by token in ascending order of tokens."""
    starts_N: Tensor
    """First place in `rows_M` of each token."""
    slots_NX: Tensor
    """Row of each (token, expert), or M where the expert does not take the token."""

    @property
    def counts_X(self) -> Tensor:
        """Rows of each expert."""
        return self.ends_X.diff(prepend=self.ends_X.new_zeros(1))

    @property
    def counts_N(self) -> Tensor:
        """Rows of each token."""
        return self.starts_N.diff(append=self.starts_N.new_full((1,), self.tokens_M.shape[0]))


def assign(tokens_M: Tensor, experts_M: Tensor, *, n_tokens: int, n_experts: int) -> Assignment:
    """Build the assignment from pairs that are already grouped by expert (ascending)."""
    device, n_pairs = tokens_M.device, tokens_M.shape[0]
    order_type = torch.int16 if max(n_tokens, n_experts) < 2**15 else torch.int64
    sorted_tokens_M, rows_M = tokens_M.to(order_type).sort(stable=True)
    starts_N = torch.searchsorted(sorted_tokens_M, torch.arange(n_tokens, device=device, dtype=order_type))
    ends_X = torch.searchsorted(
        experts_M.to(order_type),
        torch.arange(n_experts, device=device, dtype=order_type),
        right=True,
        out_int32=True,
    )
    slots_NX = torch.full((n_tokens, n_experts), n_pairs, device=device)
    slots_NX.view(-1)[tokens_M * n_experts + experts_M] = torch.arange(n_pairs, device=device)
    return Assignment(tokens_M, experts_M, ends_X, rows_M, starts_N, slots_NX)


def to_experts(x_ND: Tensor, assignment: Assignment) -> Tensor:
    """Copy token rows into expert order, [M, D]."""
    rows: Tensor = _ToExperts.apply(x_ND, assignment)
    return rows


def to_tokens(y_MD: Tensor, assignment: Assignment) -> Tensor:
    """Sum each token's rows, [N, D]; zero for a token without any."""
    sums: Tensor = _ToTokens.apply(y_MD, assignment)
    return sums


def pick(scores_NX: Tensor, assignment: Assignment) -> Tensor:
    """Read the score of every assigned pair, [M]."""
    picked: Tensor = _Pick.apply(scores_NX, assignment)
    return picked


# What a backward pass needs is saved with save_for_backward alone: on `ctx` itself it would outlive the forward pass
# under activation checkpointing, which drops and recomputes saved tensors only.


def _gather(x_ND: Tensor, tokens_M: Tensor) -> Tensor:
    return x_ND.index_select(0, tokens_M)


def _sum(y_MD: Tensor, rows_M: Tensor, starts_N: Tensor) -> Tensor:
    if rows_M.numel() == 0:
        return y_MD.new_zeros(starts_N.shape[0], y_MD.shape[1])
    return F.embedding_bag(rows_M, y_MD, starts_N, mode="sum")


class _ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, assignment: Assignment) -> Tensor:
        ctx.save_for_backward(assignment.rows_M, assignment.starts_N)
        return _gather(x_ND, assignment.tokens_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0].contiguous(), *ctx.saved_tensors), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, assignment: Assignment) -> Tensor:
        ctx.save_for_backward(assignment.tokens_M)
        return _sum(y_MD, assignment.rows_M, assignment.starts_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gather(gradients[0], *ctx.saved_tensors), None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_NX: Tensor, assignment: Assignment) -> Tensor:
        ctx.save_for_backward(assignment.slots_NX)
        n_experts = scores_NX.shape[1]
        return scores_NX.reshape(-1).index_select(0, assignment.tokens_M * n_experts + assignment.experts_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slots_NX,) = ctx.saved_tensors
        padded = torch.cat((gradients[0], gradients[0].new_zeros(1)))
        return padded.index_select(0, slots_NX.view(-1)).view(slots_NX.shape), None
