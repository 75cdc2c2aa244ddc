"""Moving rows between token order and expert order, with gathers alone in forward and backward.

An assignment is a set of (token, expert) pairs. Rows in expert order are grouped by expert; every pair is one row.
Because each pair has its one place in both orders, the gradient of a gather is again a gather, or a sum over
consecutive gathered rows (`embedding_bag`): nothing is added by index, hence no atomics and no random order of sums.

Shapes: N tokens, X experts, M assigned pairs, D d_model.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FEW: Final = 2**13
"""Scores up to which torch's topk is faster than numpy's quickselect, by what a call costs."""


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
    sorted_tokens_M, rows_M = _sorted(tokens_M, n_tokens)
    starts_N = torch.searchsorted(sorted_tokens_M, _numbers(n_tokens, sorted_tokens_M))
    return Assignment(tokens_M, experts_M, _ends(experts_M, n_experts), rows_M, starts_N)


def assign_choices(experts_Nk: Tensor, *, n_experts: int) -> tuple[Assignment, Tensor]:
    """The assignment of tokens that each chose k experts, and which choice (token·k + its number) is in each row."""
    n_tokens, top_k = experts_Nk.shape
    experts_M, choices_M = _sorted(experts_Nk.reshape(-1), n_experts)
    rows_M = torch.empty_like(choices_M).scatter_(0, choices_M, torch.arange(len(choices_M), device=choices_M.device))
    starts_N = torch.arange(0, n_tokens * top_k, top_k, device=choices_M.device)
    assignment = Assignment(choices_M // top_k, experts_M.long(), _ends(experts_M, n_experts), rows_M, starts_N)
    return assignment, choices_M


def has_numpy(tensor: Tensor) -> bool:
    """Whether numpy may work on the tensor: on the CPU, a type that numpy has, and not while it is being compiled."""
    return tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16 and not torch.compiler.is_compiling()


def highest(scores: Tensor, k: int) -> Tensor:
    """Places of the k highest of the last dimension, [..., k], in no particular order."""
    if k == 1:
        return scores.max(-1, keepdim=True).indices
    if not has_numpy(scores) or scores.numel() < _FEW:
        return scores.topk(k, sorted=False).indices
    rest = scores.shape[-1] - k  # by quickselect; torch's topk takes two to three times as long for many
    return torch.from_numpy(np.argpartition(scores.numpy(), rest, axis=-1)[..., rest:])


def _sorted(numbers_M: Tensor, below: int) -> tuple[Tensor, Tensor]:
    """Numbers in ascending order, equal ones as they stood, and where each stood."""
    narrow_M = numbers_M.to(torch.int16 if below < 2**15 else torch.int64)
    if not has_numpy(narrow_M):
        return narrow_M.sort(stable=True)
    order_M = torch.from_numpy(np.argsort(narrow_M.numpy(), kind="stable"))  # a radix sort; torch's takes 10 times
    return narrow_M.index_select(0, order_M), order_M


def _numbers(below: int, like: Tensor) -> Tensor:
    return torch.arange(below, device=like.device, dtype=like.dtype)


def _ends(experts_M: Tensor, n_experts: int) -> Tensor:
    narrow_M = experts_M.to(torch.int16 if n_experts < 2**15 else torch.int64)
    return torch.searchsorted(narrow_M, _numbers(n_experts, narrow_M), right=True, out_int32=True)


def to_experts(x_ND: Tensor, assignment: Assignment) -> Tensor:
    """Copy token rows into expert order, [M, D]."""
    rows: Tensor = _ToExperts.apply(x_ND, assignment)
    return rows


def to_tokens(y_MD: Tensor, assignment: Assignment) -> Tensor:
    """Sum each token's rows, [N, D]; zero for a token without any."""
    sums: Tensor = _ToTokens.apply(y_MD, assignment)
    return sums


def pick(scores_NX: Tensor, tokens_M: Tensor, experts_M: Tensor) -> Tensor:
    """Read the score of every pair, [M]; no pair may be there twice."""
    picked: Tensor = _Pick.apply(scores_NX, tokens_M * scores_NX.shape[1] + experts_M)
    return picked


def reorder(values_M: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
    """values[order]; `inverse` is the inverse permutation of `order`."""
    moved: Tensor = _Reorder.apply(values_M, order_M, inverse_M)
    return moved


# What a backward pass needs is saved with save_for_backward alone: on `ctx` itself it would outlive the forward pass
# under activation checkpointing, which drops and recomputes saved tensors only.


def _gather(x_ND: Tensor, tokens_M: Tensor) -> Tensor:
    return x_ND.index_select(0, tokens_M)


def sum_rows(y_MD: Tensor, rows_M: Tensor, starts_N: Tensor) -> Tensor:
    """Σ of each token's rows, [N, D], outside autograd; zero for a token without any."""
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
        return sum_rows(gradients[0].contiguous(), *ctx.saved_tensors), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, assignment: Assignment) -> Tensor:
        ctx.save_for_backward(assignment.tokens_M)
        return sum_rows(y_MD, assignment.rows_M, assignment.starts_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gather(gradients[0], *ctx.saved_tensors), None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_NX: Tensor, places_M: Tensor) -> Tensor:
        ctx.save_for_backward(places_M)
        ctx.shape = scores_NX.shape
        return scores_NX.reshape(-1).index_select(0, places_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places_M,) = ctx.saved_tensors
        # Places differ, so that this only moves: nothing is added, and its order is of no matter.
        return gradients[0].new_zeros(ctx.shape.numel()).scatter_(0, places_M, gradients[0]).view(ctx.shape), None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_M: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_M)
        return values_M.index_select(0, order_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse_M,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse_M), None, None
