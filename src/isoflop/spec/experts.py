"""What a fine-grained Mixture-of-Experts layer is."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from isoflop.errors import InputError
from isoflop.spec._checks import STRICT_FIELDS, require_choice, require_non_negative, require_positive

RouterKind = Literal["token_choice", "expert_choice", "expert_choice_noncausal"]
ScoreOrder = Literal["softmax_topk", "topk_softmax"]
Balance = Literal["auxiliary", "bias", "none"]


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How tokens and experts find each other."""

    __pydantic_config__ = STRICT_FIELDS

    kind: RouterKind = "token_choice"
    """token_choice: each token takes its top-k experts (dropless). expert_choice: softmax over experts, then each
    expert takes its share of the tokens that stand at the same position of different sequences (Krajewski et al.
    2024, arXiv 2402.07871, sec. 3). expert_choice_noncausal: each expert chooses among all tokens of all positions,
    which leaks the future (Zhou et al. 2022, arXiv 2202.09368); its losses are marked non-causal."""
    score_order: ScoreOrder = "softmax_topk"
    """token_choice only: softmax over all experts and then top-k, or top-k logits and then softmax over those."""
    renormalise: bool = True
    """token_choice with softmax_topk only: divide the k gates by their sum."""
    balance: Balance = "auxiliary"
    """token_choice only: auxiliary loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4-6), loss-free bias (Wang et al.
    2024, arXiv 2408.15664), or none."""
    balance_weight: float = 0.01
    """Weight of the auxiliary balance loss."""
    bias_rate: float = 0.001
    """Step of the loss-free bias after each optimiser step."""
    z_loss_weight: float = 0.0
    """Weight of the router z-loss, mean of logsumexp(logits)² (Zoph et al. 2022, arXiv 2202.08906, eq. 5)."""

    def __post_init__(self) -> None:
        require_choice(self, "kind", get_args(RouterKind))
        require_choice(self, "score_order", get_args(ScoreOrder))
        require_choice(self, "balance", get_args(Balance))
        require_non_negative(self, "balance_weight", "bias_rate", "z_loss_weight")

    @property
    def is_causal(self) -> bool:
        """False if a token's output may depend on later tokens of its own sequence."""
        return self.kind != "expert_choice_noncausal"


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """Fine-grained experts, by granularity G and expansion rate E (Krajewski et al. 2024, arXiv 2402.07871).

    n_experts = G·E routed experts of width d_expert = d_ff/G, of which a token uses top_k = G·activation_multiplier.
    """

    __pydantic_config__ = STRICT_FIELDS

    granularity: int
    """G = d_ff / d_expert."""
    expansion_rate: float
    """E = parameters of the routed experts / parameters of the dense feed-forward layer; G·E must be whole."""
    activation_multiplier: float = 1.0
    """Experts per token are G × this (1: active parameters equal those of the dense layer); must be whole."""
    shared_experts: int = 0
    """Experts of width d_expert that every token uses, beside the routed ones."""
    noop_experts: int = 0
    """Experts that do nothing and cost nothing, among which the router may send a token (integrated MoDE; Raposo et
    al. 2024, arXiv 2404.02258, sec. 4.4). Balanced, they take noop/(noop + G·E) of all choices."""
    output_norm: bool = True
    """RMSNorm on the layer's output; the fine-grained paper calls it crucial for G > 1."""
    skip_first: int = 0
    """The first this-many blocks keep a dense feed-forward."""
    every: int = 1
    """Of the remaining blocks every n-th is MoE (2: the second, fourth, …)."""
    router: RouterSpec = field(default_factory=RouterSpec)
    """How tokens are routed."""

    def __post_init__(self) -> None:
        require_positive(self, "granularity", "expansion_rate", "activation_multiplier", "every")
        require_non_negative(self, "shared_experts", "noop_experts", "skip_first")
        for name, factor in (
            ("expansion_rate", self.expansion_rate),
            ("activation_multiplier", self.activation_multiplier),
        ):
            product = self.granularity * factor
            if product < 1 or abs(product - round(product)) > 1e-9:
                raise InputError(
                    f"experts.{name} is {factor}; granularity × {name} = {product:g} must be a whole number of "
                    f"experts, e.g. {name}={max(1, round(product)) / self.granularity!r}."
                )
        if self.top_k > self.n_experts:
            raise InputError(
                f"experts.activation_multiplier is {self.activation_multiplier:g}; a token cannot use more than all "
                f"{self.n_experts} experts, so at most {self.expansion_rate:g}."
            )

    @property
    def n_experts(self) -> int:
        """X = G·E, routed experts."""
        return round(self.granularity * self.expansion_rate)

    @property
    def top_k(self) -> int:
        """k, routed experts per token (on average, for expert choice)."""
        return round(self.granularity * self.activation_multiplier)

    @property
    def n_choices(self) -> int:
        """Routed experts and no-op experts: what the router chooses among."""
        return self.n_experts + self.noop_experts

    @property
    def computed_share(self) -> float:
        """Share of a token's top_k choices that are computed if all experts, no-ops among them, have equal loads."""
        return self.n_experts / self.n_choices

    @property
    def sparsity(self) -> float:
        """S = 1 − active/total experts, shared ones counted in both (Li et al. 2026, arXiv 2603.10379)."""
        total = self.n_experts + self.shared_experts
        return 1 - (self.top_k * self.computed_share + self.shared_experts) / total

    @property
    def gates_after_norm(self) -> bool:
        """Whether the gate multiplies after the output norm: with one expert per token the norm would cancel it."""
        lone = self.router.kind == "token_choice" and self.top_k == 1 and not self.shared_experts
        return lone and self.output_norm

    def is_expert_layer(self, layer: int) -> bool:
        """Whether block `layer` (from 0) is MoE."""
        return layer >= self.skip_first and (layer - self.skip_first + 1) % self.every == 0
