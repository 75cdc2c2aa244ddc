"""What depth routing (Mixture-of-Depths) is."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from isoflop.errors import InputError
from isoflop.spec._checks import STRICT_FIELDS, require_choice, require_non_negative, require_positive, require_whole

RoutedPart = Literal["block", "feed_forward"]
DepthRouterKind = Literal["learned", "stochastic", "fixed"]
Gate = Literal["raw", "sigmoid"]
SampledBy = Literal["threshold", "auxiliary", "predictor"]


@dataclass(frozen=True, kw_only=True)
class DepthRoutingSpec:
    """Mixture-of-Depths (Raposo et al. 2024, arXiv 2404.02258): some blocks compute a part of each sequence's tokens.

    In a routed block a router scores every token; the ceil(capacity · n) highest of a sequence of n tokens take part
    and the others pass by unchanged. With experts as well this is the paper's staged MoDE.
    """

    __pydantic_config__ = STRICT_FIELDS

    capacity: float
    """Share of a sequence's tokens that a routed block computes, in (0, 1]."""
    every: int = 2
    """Of the blocks after skip_first every n-th is routed (1: all; 2: the second, fourth, …)."""
    skip_first: int = 0
    """The first this-many blocks are never routed."""
    part: RoutedPart = "block"
    """block: attention (among the kept tokens alone) and feed-forward are skipped; feed_forward: only that."""
    router: DepthRouterKind = "learned"
    """learned: a linear score; stochastic: a pseudo-random score, the paper's control; fixed: tokens at equal
    distances. The last two have no gate."""
    gate: Gate = "raw"
    """Factor on a kept token's update, which gives the learned router its gradient. raw: the score, as in the paper;
    sigmoid: 2·sigmoid(score), which is 1 for a router of zeros and never changes the sign."""
    sampled_by: SampledBy = "threshold"
    """How a learned router decides without seeing later tokens. threshold: score against a threshold that is
    calibrated to the capacity after training; auxiliary: score above 0, which a BCE loss on the scores trains for;
    predictor: a small MLP on the router's (detached) input, trained by BCE to foretell membership."""
    auxiliary_weight: float = 0.01
    """Weight of the BCE loss of `auxiliary` and `predictor`, for each routed block."""
    predictor_width: int | None = None
    """Hidden width of the predictor; default: d_model/8, at least 8."""

    def __post_init__(self) -> None:
        number = isinstance(self.capacity, (int, float)) and not isinstance(self.capacity, bool)
        if not number or not 0 < self.capacity <= 1:
            raise InputError(f"depth_routing.capacity is {self.capacity!r}; it must be greater than 0 and at most 1.")
        require_whole(self, "every", "skip_first")
        require_positive(self, "every")
        require_non_negative(self, "skip_first", "auxiliary_weight")
        if self.predictor_width is not None:
            require_positive(self, "predictor_width")
        require_choice(self, "part", get_args(RoutedPart))
        require_choice(self, "router", get_args(DepthRouterKind))
        require_choice(self, "gate", get_args(Gate))
        require_choice(self, "sampled_by", get_args(SampledBy))
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        if self.router != "learned":
            for name, only in (("gate", "raw"), ("sampled_by", "threshold")):
                if getattr(self, name) != only:
                    raise InputError(
                        f"depth_routing.{name} is {getattr(self, name)!r}, for which a {self.router} router has no "
                        "use; leave it out, or make the router learned."
                    )
        if self.predictor_width is not None and not self.has_predictor:
            raise InputError(
                f"depth_routing.predictor_width is {self.predictor_width}, but there is no predictor; set sampled_by "
                "to predictor (with a learned router), or leave it out."
            )

    def is_routed_layer(self, layer: int) -> bool:
        """Whether block `layer` (from 0) is routed."""
        return layer >= self.skip_first and (layer - self.skip_first + 1) % self.every == 0

    def n_kept(self, length: int) -> int:
        """Tokens of a sequence of `length` that a routed block computes: ceil(capacity · length), at least 1."""
        return max(1, math.ceil(self.capacity * length - 1e-9))

    def hidden_width(self, d_model: int) -> int:
        """Width of the predictor, with the default filled in."""
        return self.predictor_width or max(8, d_model // 8)

    @property
    def has_predictor(self) -> bool:
        """Whether the routed blocks have a predictor."""
        return self.router == "learned" and self.sampled_by == "predictor"

    @property
    def is_causal(self) -> bool:
        """Whether even the choice in training never looks at later tokens."""
        return self.router == "fixed"
