"""What a dense feed-forward layer is."""

from dataclasses import dataclass
from typing import Literal, get_args

from isoflop.spec._checks import STRICT_FIELDS, require_choice, require_positive

Activation = Literal["swiglu", "gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class FeedForwardSpec:
    """A feed-forward layer of width d_ff; in an MoE layer the same width is cut into experts."""

    __pydantic_config__ = STRICT_FIELDS

    d_ff: int
    """Hidden width of the dense layer, and the reference width of the experts."""
    activation: Activation = "swiglu"
    """swiglu (gated, three matrices; Shazeer 2020, arXiv 2002.05202), gelu or relu (two matrices)."""

    def __post_init__(self) -> None:
        require_positive(self, "d_ff")
        require_choice(self, "activation", get_args(Activation))

    @property
    def n_matrices(self) -> int:
        """Matrices of d_model × width in one feed-forward: 3 if gated, else 2."""
        return 3 if self.activation == "swiglu" else 2
