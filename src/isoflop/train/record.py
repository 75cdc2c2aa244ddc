"""The run record: one run as a row in the standard columns of a run table."""

import math
from collections.abc import Mapping
from typing import Any

import isoflop
from isoflop.spec import DecoderSpec
from isoflop.train.config import TrainConfig
from isoflop.train.evaluation import Evaluation
from isoflop.train.resolve import Resolved


def run_record(
    spec: DecoderSpec,
    config: TrainConfig,
    plan: Resolved,
    *,
    run_id: str,
    steps: int,
    epochs: float,
    wall_seconds: float,
    bytes_per_token: float,
    evaluation: Evaluation | None,
    sampled: Evaluation | None,
    train_loss: float | None,
    error: str | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Standard columns, the further ones, then `extra`; a missing value is None.

    `steps`, `tokens` and `flops` are what was really done. `loss`, `loss_std` (standard error of the mean over held-out
    windows), `dropped_share`, `load_max` (largest load of an expert as a multiple of an equal share) and
    `router_entropy` (mean over layers, nats) come from held-out text. A diverged run has no loss.

    `evaluation` decides as in training, `sampled` token by token as in sampling (None: no difference); the losses are
    `loss_as_trained` and `loss_sampled`. `loss` is the first of them, unless depth routing made it look at later
    tokens: then it is the second, so that every comparison is one of causal models.
    """
    headline = sampled if spec.depth_routing is not None and sampled is not None else evaluation
    experts, counted = spec.experts, plan.count
    seconds = max(wall_seconds, 1e-9)
    tokens, flops = steps * plan.batch_tokens, steps * plan.flops_per_step
    loss = headline.loss if headline else None
    routing = spec.depth_routing
    record = {
        "run_id": run_id,
        "study": None,
        "architecture": None,
        "status": "done" if error is None else "diverged",
        "error": error,
        "loss": loss,
        "loss_std": headline.loss_std if headline else None,
        "bits_per_byte": None if loss is None else loss / math.log(2) / bytes_per_token,
        "loss_sampled": sampled.loss if sampled else None,
        "loss_as_trained": evaluation.loss if evaluation and sampled else None,
        "train_loss": train_loss,
        "causal": spec.is_causal if spec.depth_routing is None else spec.is_causal_when_sampled,
        "params_total": counted.params_total,
        "params_active": counted.params_active,
        "params_embedding": counted.params_embedding,
        "params_router": counted.params_router,
        "tokens": tokens,
        "flops": flops,
        "flops_convention": counted.convention,
        "budget": config.flops,
        "n_layers": spec.n_layers,
        "d_model": spec.d_model,
        "d_ff": spec.feed_forward.d_ff,
        "d_expert": spec.d_expert,
        "n_heads": spec.attention.n_heads,
        "context": spec.context,
        "vocab_size": spec.vocab_size,
        "granularity": experts.granularity if experts else 1,
        "expansion_rate": experts.expansion_rate if experts else 1,
        "n_experts": experts.n_experts if experts else 1,
        "top_k": experts.top_k if experts else 1,
        "sparsity": experts.sparsity if experts else 0.0,
        "expert_attention_ratio": counted.expert_attention_ratio,
        "depth_capacity": routing.capacity if routing else 1,
        "depth_every": routing.every if routing else None,
        "depth_part": routing.part if routing else None,
        "depth_router": routing.router if routing else "none",
        "depth_sampled_by": routing.sampled_by if routing and routing.router == "learned" else None,
        "noop_experts": experts.noop_experts if experts else 0,
        "router": experts.router.kind if experts else "none",
        "output_norm": experts.output_norm if experts else False,
        "init": config.init,
        "seed": config.seed,
        "batch_tokens": plan.batch_tokens,
        "micro_batch": plan.micro_batch,
        "evaluation_batch": plan.micro_batch,
        "steps": steps,
        "epochs": epochs,
        "learning_rate": plan.learning_rate,
        "schedule": config.schedule,
        "dtype": config.dtype,
        "wall_seconds": wall_seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": flops / seconds,
        "dropped_share": evaluation.dropped_share if evaluation else None,
        "load_max": evaluation.load_max if evaluation else None,
        "router_entropy": evaluation.router_entropy if evaluation else None,
        "kept_share": sampled.kept_share if routing and sampled else None,
        "depth_agreement": sampled.depth_agreement if routing and sampled else None,
        "version": isoflop.__version__,
        **extra,
    }
    return {name: _plain(value) for name, value in record.items()}


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
