"""Fine-grained Mixture-of-Experts layer.

Shapes: B batch, T tokens, D d_model, F expert width, X routed experts, M assigned (token, expert) pairs.
"""

import math
import warnings
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import InputError
from isoflop.nn._init import compute_dtype, gain, truncated_normal
from isoflop.nn._plain import is_plain
from isoflop.nn.dispatch import Assignment, to_experts, to_tokens
from isoflop.nn.experts import ExpertsOfFew, experts_in_blocks
from isoflop.nn.feed_forward import FeedForward, activate
from isoflop.nn.grouped import grouped_matmul
from isoflop.nn.router import Router
from isoflop.nn.statistics import ExpertStatistics
from isoflop.spec import ExpertsSpec, expert_layer_flops
from isoflop.spec.feed_forward import Activation

_SORTING: Final = 15 * 2**20
"""Weights that can be read in the time that it takes to sort rows by expert and to see to all experts."""

_BY_GROUPS: Final = 1.5
"""How much longer than for a single row it takes to read a weight and multiply it with a few rows."""


class MoE(nn.Module):
    """Fine-grained experts in place of a dense feed-forward of width `d_ff`, [B, T, D] → [B, T, D].

    y = norm(Σ_x gate_x · expert_x(token) + shared(token)) over the experts that the router assigned to the token
    (Krajewski et al. 2024, arXiv 2402.07871); the RMSNorm is there if `experts.output_norm`. Experts have width
    F = d_ff / G; shared experts are one dense feed-forward of width shared·F.

    With token choice, k = 1 and no shared expert the gate multiplies after the norm: an RMSNorm of one gated output
    would cancel the gate, and no gradient but the balance loss's would reach the router.

    `w_up` is [X, D, F], or [X, D, 2F] with the gate's columns first (swiglu); `w_down` is [X, F, D]. The norm's gain
    starts at `output_scale`, since a norm makes w_down's scale irrelevant.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int,
        experts: ExpertsSpec,
        activation: Activation = "swiglu",
        norm_eps: float = 1e-6,
        init_scale: float = 1.0,
        output_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if d_ff % experts.granularity:
            raise InputError(f"experts.granularity is {experts.granularity}; it must divide d_ff={d_ff}.")
        self.experts = experts
        self.activation = activation
        self.norm_eps = norm_eps
        d_expert, n_experts = d_ff // experts.granularity, experts.n_experts
        gated = activation == "swiglu"
        _warn_if_extreme(experts, d_model=d_model, d_ff=d_ff, n_matrices=3 if gated else 2)
        self.router = Router(d_model, experts, init_scale=init_scale, generator=generator, device=device, dtype=dtype)
        self.w_up = truncated_normal(
            n_experts,
            d_model,
            2 * d_expert if gated else d_expert,
            std=math.sqrt(init_scale / d_model),
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.w_down = truncated_normal(
            n_experts,
            d_expert,
            d_model,
            std=math.sqrt(init_scale / d_ff) * output_scale,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.shared = (
            FeedForward(
                d_model,
                experts.shared_experts * d_expert,
                activation,
                fan_in_down=d_ff,
                init_scale=init_scale,
                output_scale=output_scale,
                generator=generator,
                device=device,
                dtype=dtype,
            )
            if experts.shared_experts
            else None
        )
        if experts.output_norm:
            self.output_gain = gain(d_model, output_scale, device, dtype)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, ExpertStatistics]:
        """Return the layer's output and its statistics."""
        routing = self.router(x_BTD)
        dtype, gate_last = compute_dtype(x_BTD), self.experts.gates_after_norm
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).to(dtype)
        gates_M, w_up, w_down = routing.gates_M.to(dtype), self.w_up.to(dtype), self.w_down.to(dtype)
        if x_ND.device.type == "cpu" and not torch.compiler.is_compiling():
            inner = None if gate_last else gates_M
            y_ND = experts_in_blocks(x_ND, w_up, w_down, inner, routing.assignment, self.activation)
        else:
            y_ND = self._in_expert_order(x_ND, w_up, w_down, None if gate_last else gates_M, routing.assignment)
        if gate_last:
            y_ND = to_tokens(self.normed(y_ND) * gates_M[:, None], routing.assignment)
        y_BTD = y_ND.view(x_BTD.shape)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        if not gate_last:
            y_BTD = self.normed(y_BTD)
        return y_BTD, routing.statistics

    def sample(self, x_BTD: Tensor) -> Tensor:
        """The output alone, without statistics: without gradients, and for a few tokens on the CPU, it is faster."""
        experts = self.experts
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        if (
            torch.is_grad_enabled()
            or not is_plain(self, MoE)
            or not is_plain(self.router, Router)
            or compute_dtype(x_BTD) != torch.float32
            or experts.gates_after_norm
            or not self.takes_one_by_one(x_ND.shape[0])
            or not ExpertsOfFew.can_take(x_ND, self.w_up, self.w_down)
        ):
            y_BTD: Tensor = self(x_BTD)[0]
            return y_BTD
        chosen_Nk, gates_Nk = self.router.choices(x_ND)
        of_few = ExpertsOfFew(self.w_up, self.w_down, x_ND.shape[0], experts.top_k, self.activation)
        y_ND = of_few(x_ND, gates_Nk, chosen_Nk)
        y_BTD = y_ND.view(x_BTD.shape)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return self.normed(y_BTD)

    def takes_one_by_one(self, n_tokens: int) -> bool:
        """Whether to take rows one by one, which reads weights for each, is faster than to sort them by expert.

        For token choice among experts that all compute.
        """
        n_experts, top_k = self.experts.n_experts, self.experts.top_k
        if self.router.is_expert_choice or self.experts.noop_experts:
            return False
        met = n_experts * (1 - (1 - top_k / n_experts) ** n_tokens)
        each = (self.w_up.numel() + self.w_down.numel()) // n_experts
        return n_tokens * top_k * each <= _SORTING + _BY_GROUPS * met * each

    def _in_expert_order(
        self, x_ND: Tensor, w_up: Tensor, w_down: Tensor, gates_M: Tensor | None, assignment: Assignment
    ) -> Tensor:
        """As `experts_in_blocks`, each step for all rows at once and on any device."""
        x_MD = to_experts(x_ND, assignment)
        hidden = activate(grouped_matmul(x_MD, w_up, assignment.ends_X), self.activation)
        if gates_M is not None:
            hidden = hidden * gates_M[:, None]
        y_MD = grouped_matmul(hidden, w_down, assignment.ends_X)
        return y_MD if gates_M is None else to_tokens(y_MD, assignment)

    def normed(self, y: Tensor) -> Tensor:
        """The layer's end: the output norm, if it has one."""
        if not self.experts.output_norm:
            return y
        return F.rms_norm(y, y.shape[-1:], self.output_gain.to(y.dtype), self.norm_eps)


def _warn_if_extreme(experts: ExpertsSpec, *, d_model: int, d_ff: int, n_matrices: int) -> None:
    """Warn when routing costs more FLOPs than the experts (`isoflop.spec.count`, convention `exact`)."""
    flops = expert_layer_flops(experts, d_model=d_model, d_ff=d_ff, n_matrices=n_matrices)
    routing = flops["router"] + flops["dispatch"]
    if routing > flops["experts"]:
        warnings.warn(
            f"experts.granularity is {experts.granularity}: router and dispatch take {routing:,.0f} FLOPs per token, "
            f"the experts themselves {flops['experts']:,.0f}; a smaller granularity or expansion rate spends them "
            f"better.",
            stacklevel=3,
        )
