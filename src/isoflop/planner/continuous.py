"""Continuous shapes of the scaling-law papers: sizes that need not be whole numbers, and the best one at a budget.

Every shape has d_model = 64·n_layers and an ungated feed-forward of width 4·d_model, so that with L = n_layers
N_active = 12·d_model²·L and N_total = d_model²·(8E + 4)·L, both without embedding, norms and router (Krajewski et al.
2024, arXiv 2402.07871, sec. 5.2).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

ASPECT: Final = 64.0
"""d_model / n_layers."""

ROUTING_FLOPS: Final = 14.0
"""c_r: training FLOPs per router weight: logits 2 forward + 4 backward, dispatch 2 + 2, combine 2 + 2."""

FORWARD_ROUTING_FLOPS: Final = 6.0
"""Of ROUTING_FLOPS, those of the forward."""

EXPERT_SHARE: Final = 8 / 12
"""Share of the active matrix parameters that stands in the feed-forward."""

CONVENTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "krajewski": "(6·12·d_model² + 14·d_model·n_experts)·n_layers FLOPs a token; parameters without the router",
        "6ND": "6·params_active FLOPs a token; parameters without the router",
    }
)
"""Conventions of spec.CONVENTIONS that need neither context nor vocabulary, so that a continuous shape has a cost."""

SMALLEST: Final = 12 * ASPECT**2
"""Active parameters of the smallest shape: one block, one head of 64 wide."""

_GRID = 257


def without_embedding(params: np.ndarray, rows: float) -> np.ndarray:
    """Parameters without `rows`·d_model of embedding and head, of shapes that have so many with them.

    Of a shape too small for its embedding a hundredth is left.
    """
    size = np.asarray(params, dtype=float)
    if not rows:
        return size
    width = np.cbrt(size * ASPECT / 12)  # of a shape without embedding, so above the true one
    for _ in range(60):  # Newton's method for 12·d³/64 + rows·d = params, from above
        width = width - (12 * width**3 / ASPECT + rows * width - size) / (36 * width**2 / ASPECT + rows)
    return np.asarray(np.maximum(12 * width**3 / ASPECT, size / 100))


def shapes(
    params_active: np.ndarray, *, convention: str, granularity: int, expansion_rate: float, embedding_rows: float = 0.0
) -> dict[str, np.ndarray]:
    """Standard columns of continuous shapes with these active parameters, and what they cost.

    With `embedding_rows` the parameters hold that many vectors of d_model beside, for embedding and head.

    Costs are training_flops_per_token, inference_flops_per_token (a forward), expert_share (of the FLOPs, routing
    included) and d_expert, the width of an expert. An expansion rate of 1 with granularity 1 is the dense model, which
    has no router.
    """
    size = np.asarray(params_active, dtype=float)
    matrices = without_embedding(size, embedding_rows)
    n_layers = np.cbrt(matrices / (12 * ASPECT**2))
    if embedding_rows:
        n_layers = np.maximum(n_layers, 1.0)
    d_model = ASPECT * n_layers
    n_experts = granularity * expansion_rate
    moe = n_experts > 1
    routers = d_model * n_experts * n_layers if moe and convention == "krajewski" else np.zeros_like(size)
    flops_per_token = 6 * size + ROUTING_FLOPS * routers
    experts = 6 * matrices * EXPERT_SHARE if moe else np.zeros_like(size)
    constants = {
        "granularity": granularity,
        "expansion_rate": expansion_rate,
        "n_experts": n_experts,
        "top_k": granularity,
        "sparsity": 1 - 1 / expansion_rate,
        "expert_attention_ratio": 2.0,
        "depth_capacity": 1.0,
    }
    return {
        "params_total": matrices * ((8 * expansion_rate + 4) / 12) + (size - matrices),
        "params_active": size,
        "n_layers": n_layers,
        "d_model": d_model,
        "training_flops_per_token": flops_per_token,
        "inference_flops_per_token": 2 * size + FORWARD_ROUTING_FLOPS * routers,
        "expert_share": (experts + ROUTING_FLOPS * routers) / flops_per_token,
        "d_expert": 4 * d_model / granularity,
        **{name: np.full_like(size, value) for name, value in constants.items()},
    }


def size_range(flops: float, context: int) -> tuple[float, float]:
    """Active parameters between which an optimum is sought: from one block to those that leave one sequence.

    Where the budget does not buy one sequence of the smallest shape, the second is below the first.
    """
    return SMALLEST, flops / (6 * context)


def minimise(objective: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Where a function of a positive number is least, to a relative 1e-8; the function maps arrays [n] to [n].

    A grid in log space, narrowed four times to the neighbours of its lowest point. It needs no derivative, and stands
    on the boundary where infinite values mark what is not allowed.
    """
    first, last = np.log([low, high])
    for _ in range(5):
        grid = np.linspace(first, last, _GRID)
        best = int(np.argmin(objective(np.exp(grid))))
        first, last = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    return float(np.exp(grid[best]))
