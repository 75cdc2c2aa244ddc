"""What an attention layer is."""

from dataclasses import dataclass

from isoflop.errors import InputError
from isoflop.spec._checks import STRICT_FIELDS, require_positive


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Causal grouped-query attention with rotary positions (Ainslie et al. 2023, arXiv 2305.13245)."""

    __pydantic_config__ = STRICT_FIELDS

    n_heads: int
    """Number of query heads H."""
    head_dim: int
    """Size h of one head; even, because rotary embeddings turn pairs."""
    n_kv_heads: int | None = None
    """Number of key/value heads K; divides n_heads. Default: n_heads (multi-head attention)."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, over head_dim, before the rotary embedding."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding's wavelengths."""

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "head_dim", "rope_theta")
        if self.head_dim % 2:
            raise InputError(f"attention.head_dim is {self.head_dim}; it must be even (rotary pairs).")
        if self.n_kv_heads is not None:
            require_positive(self, "n_kv_heads")
            if self.n_heads % self.n_kv_heads:
                raise InputError(f"attention.n_kv_heads is {self.n_kv_heads}; it must divide n_heads={self.n_heads}.")

    @property
    def kv_heads(self) -> int:
        """K, with the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def width(self) -> int:
        """H·h, the width of the concatenated heads."""
        return self.n_heads * self.head_dim
