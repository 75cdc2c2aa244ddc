"""Routers: who computes what, and with which gate.

Shapes: B batch, T tokens in a sequence, D d_model, N = B·T tokens, X routed experts, k experts per token,
M assigned (token, expert) pairs, C tokens that an expert takes from a group.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import InputError
from isoflop.nn._init import truncated_normal
from isoflop.nn.dispatch import Assignment, assign, assign_choices, highest, pick, reorder
from isoflop.nn.linear import linear
from isoflop.nn.statistics import ExpertStatistics, expert_statistics
from isoflop.spec import ExpertsSpec


@dataclass(frozen=True)
class Routing:
    """What a router decided about a batch."""

    assignment: Assignment
    """Which expert computes which token."""
    gates_M: Tensor
    """Factor on each assigned pair's output, in expert order."""
    statistics: ExpertStatistics
    """Load, entropy, dropped share and auxiliary loss."""


class Router(nn.Module):
    """Linear router without bias, computed in float32 (or wider) also under autocast.

    **token_choice.** Each token takes its top-k experts; dropless. Gates are softmax probabilities over all experts
    (`softmax_topk`), divided by their sum if `renormalise`, or a softmax over the k chosen logits (`topk_softmax`: the
    same numbers). With k = 1 the gate is the plain softmax probability in every case (Switch; Fedus et al. 2021, arXiv
    2101.03961): normalised, it would be the constant 1 and leave the router without a gradient.

    **expert_choice** (Krajewski et al. 2024, arXiv 2402.07871, sec. 3). Softmax over experts; at each position every
    expert takes its C highest-scored of the B tokens that stand there, C = B·k/X rounded half up, at least 1.
    Gates are the softmax probabilities. Nothing depends on later positions. (Inside a depth-routed block "position" is
    the place among a sequence's kept tokens, which differs between sequences: there it is causal by threshold alone.)

    **expert_choice_noncausal** (Zhou et al. 2022, arXiv 2202.09368). Each expert takes its C = ceil(T·k/X)
    highest-scored tokens of every sequence, which leaks the future.

    With no-op experts the router chooses among X + noop; what goes to a no-op is not computed (integrated MoDE; Raposo
    et al. 2024, arXiv 2404.02258, sec. 4.4). In expert choice they count in C alone: C = B·k/(X + noop).

    Both expert-choice routers can decide by `threshold_X` instead (`by_threshold`): expert x takes a token iff its
    softmax probability is at least threshold_X[x], a causal rule that needs no batch to choose from.
    """

    threshold_X: Tensor
    bias_X: Tensor

    def __init__(
        self,
        d_model: int,
        experts: ExpertsSpec,
        *,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.by_threshold = False
        """Expert choice only: decide by calibrated thresholds, as at sampling time, not among a group."""
        wide = torch.promote_types(dtype, torch.float32)
        self.w_XD = truncated_normal(
            experts.n_choices,
            d_model,
            std=math.sqrt(init_scale / d_model),
            generator=generator,
            device=device,
            dtype=wide,
        )
        if self.is_expert_choice:
            unset = torch.full((experts.n_experts,), float("nan"), dtype=wide, device=device)
            self.register_buffer("threshold_X", unset)
        elif experts.router.balance == "bias":
            self.register_buffer("bias_X", torch.zeros(experts.n_choices, dtype=wide, device=device))

    @property
    def is_expert_choice(self) -> bool:
        """Whether experts choose tokens."""
        return self.experts.router.kind != "token_choice"

    @property
    def _renormalises(self) -> bool:
        """Whether gates are a softmax over the chosen logits."""
        router = self.experts.router
        return self.experts.top_k > 1 and (router.renormalise or router.score_order == "topk_softmax")

    def scores(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and softmax probabilities, each [N, X], in float32 or wider."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            wide = torch.promote_types(x_BTD.dtype, torch.float32)
            logits_NX = linear(x_BTD.reshape(-1, x_BTD.shape[-1]).to(wide), self.w_XD.to(wide))
            return logits_NX, logits_NX.softmax(-1)

    def forward(self, x_BTD: Tensor) -> Routing:
        """Route the tokens of a batch."""
        logits_NX, probabilities_NX = self.scores(x_BTD)
        if not self.is_expert_choice:
            return self._token_choice(logits_NX, probabilities_NX)
        batch, length = x_BTD.shape[:2]
        with torch.no_grad():
            if probabilities_NX.shape[0] == 0:
                experts_M = tokens_M = torch.zeros(0, dtype=torch.int64, device=x_BTD.device)
            elif self.by_threshold:
                experts_M, tokens_M = self._above_threshold(probabilities_NX)
            elif self.experts.router.kind == "expert_choice":
                experts_M, tokens_M = self._best_of_position(probabilities_NX, batch, length)
            else:
                experts_M, tokens_M = self._best_of_sequence(probabilities_NX, batch, length)
            n_tokens = probabilities_NX.shape[0]
            assignment = assign(tokens_M, experts_M, n_tokens=n_tokens, n_experts=self.experts.n_experts)
            dropped_share = (assignment.counts_N == 0).to(probabilities_NX.dtype).mean()
            # a no-op's load is the share that it stands for
            counts_X = assignment.counts_X
            if self.experts.noop_experts:
                share = n_tokens * self.experts.top_k / self.experts.n_choices
                counts_X = torch.cat((counts_X, counts_X.new_full((self.experts.noop_experts,), round(share))))
        auxiliary_loss = self._z_loss(logits_NX)
        statistics = expert_statistics(probabilities_NX, counts_X, dropped_share, auxiliary_loss)
        gates_M = pick(self._computed(probabilities_NX), assignment.tokens_M, assignment.experts_M)
        return Routing(assignment, gates_M, statistics)

    def choices(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Token choice alone, for callers without gradients: the k experts of each token and their gates, [N, k]."""
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return self.choices_by(F.linear(x_ND.to(wide), self.w_XD.to(wide)))

    def choices_by(self, logits_NX: Tensor) -> tuple[Tensor, Tensor]:
        """`choices` where the logits are there already."""
        router, top_k = self.experts.router, self.experts.top_k
        by_bias, renormalised = router.balance == "bias", self._renormalises
        if by_bias or not renormalised:
            probabilities_NX = logits_NX.softmax(-1)
        chosen_Nk = highest(probabilities_NX + self.bias_X if by_bias else logits_NX, top_k)
        if renormalised:
            return chosen_Nk, logits_NX.gather(1, chosen_Nk).softmax(-1)
        return chosen_Nk, probabilities_NX.gather(1, chosen_Nk)

    def _computed(self, scores_NX: Tensor) -> Tensor:
        """The columns of the experts that compute."""
        return scores_NX[:, : self.experts.n_experts] if self.experts.noop_experts else scores_NX

    def _token_choice(self, logits_NX: Tensor, probabilities_NX: Tensor) -> Routing:
        router, top_k = self.experts.router, self.experts.top_k
        n_tokens, n_experts = logits_NX.shape
        with torch.no_grad():
            ranked_NX = probabilities_NX + self.bias_X if router.balance == "bias" else logits_NX
            chosen_Nk = highest(ranked_NX, top_k)
            assignment, choices_M = assign_choices(chosen_Nk, n_experts=n_experts)
        # A softmax over the chosen logits is the chosen probabilities divided by their sum, without underflow.
        renormalised = self._renormalises
        tokens_M = torch.arange(n_tokens * top_k, device=logits_NX.device) // top_k
        gates_M = pick(logits_NX if renormalised else probabilities_NX, tokens_M, chosen_Nk.reshape(-1))
        if renormalised:
            gates_M = gates_M.view(n_tokens, top_k).softmax(-1).view(-1)
        gates_M = reorder(gates_M, choices_M, assignment.rows_M)
        computed, dropped_share = assignment, logits_NX.new_zeros(())
        if self.experts.noop_experts:
            # pairs are grouped by expert and no-ops come last; off the CPU this waits for their number
            with torch.no_grad():
                n_computed = int(assignment.ends_X[self.experts.n_experts - 1])
                computed = assign(
                    assignment.tokens_M[:n_computed],
                    assignment.experts_M[:n_computed],
                    n_tokens=n_tokens,
                    n_experts=self.experts.n_experts,
                )
                dropped_share = (computed.counts_N == 0).to(logits_NX.dtype).mean()
        auxiliary_loss = self._z_loss(logits_NX)
        if router.balance == "auxiliary" and router.balance_weight:
            load_X = assignment.counts_X.to(probabilities_NX.dtype) / (n_tokens * top_k)
            balance = n_experts * (load_X * probabilities_NX.mean(0)).sum()
            auxiliary_loss = auxiliary_loss + router.balance_weight * balance
        statistics = expert_statistics(probabilities_NX, assignment.counts_X, dropped_share, auxiliary_loss)
        return Routing(computed, gates_M[: computed.tokens_M.shape[0]], statistics)

    def _best_of_position(self, probabilities_NX: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
        n_choices = self.experts.n_choices
        share = max(1, math.floor(batch * self.experts.top_k / n_choices + 0.5))
        scores_BTX = self._computed(probabilities_NX).reshape(batch, length, -1)
        if share == 1:
            sequences_XTC = scores_BTX.max(0).indices.t()[..., None]
        else:
            sequences_XTC = highest(scores_BTX.permute(2, 1, 0).contiguous(), share)
        positions_T1 = torch.arange(length, device=probabilities_NX.device)[:, None]
        return self._expert_order(sequences_XTC * length + positions_T1)

    def _best_of_sequence(self, probabilities_NX: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
        share = math.ceil(length * self.experts.top_k / self.experts.n_choices)
        scores_XBT = self._computed(probabilities_NX).reshape(batch, length, -1).permute(2, 0, 1).contiguous()
        positions_XBC = highest(scores_XBT, share)
        first_B1 = torch.arange(batch, device=probabilities_NX.device)[:, None] * length
        return self._expert_order(positions_XBC + first_B1)

    def _expert_order(self, tokens_Xab: Tensor) -> tuple[Tensor, Tensor]:
        n_experts = tokens_Xab.shape[0]
        experts_X = torch.arange(n_experts, device=tokens_Xab.device)
        tokens_M = tokens_Xab.reshape(-1)
        return experts_X.repeat_interleave(tokens_M.shape[0] // n_experts), tokens_M

    def _above_threshold(self, probabilities_NX: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_calibrated():
            raise InputError(
                "expert_choice is 'threshold' but this model's thresholds are unset; run calibrate_thresholds first."
            )
        experts_M, tokens_M = (self._computed(probabilities_NX) >= self.threshold_X).t().nonzero(as_tuple=True)
        return experts_M, tokens_M

    def is_calibrated(self) -> bool:
        """Whether every expert's threshold is set."""
        return not bool(self.threshold_X.isnan().any())

    def _z_loss(self, logits_NX: Tensor) -> Tensor:
        weight = self.experts.router.z_loss_weight
        if not weight:
            return logits_NX.new_zeros(())
        return weight * logits_NX.logsumexp(-1).square().mean()

    @torch.no_grad()
    def update_bias(self, load_X: Tensor) -> None:
        """Raise the bias of under-loaded experts and lower that of over-loaded ones by `bias_rate`.

        Loss-free balancing (Wang et al. 2024, arXiv 2408.15664, algorithm 1): b += u · sign(mean load − load). The bias
        is added to the softmax probabilities for the selection alone. No-op unless balance is `bias`.
        """
        if self.experts.router.kind == "token_choice" and self.experts.router.balance == "bias":
            self.bias_X += self.experts.router.bias_rate * torch.sign(load_X.mean() - load_X)
