"""From a spec and a configuration to the numbers of a run: batch, steps, tokens, FLOPs, learning rate."""

import math
from dataclasses import dataclass, replace
from typing import Final

from isoflop.errors import InputError
from isoflop.spec import Count, DecoderSpec, count
from isoflop.train import rules
from isoflop.train.config import BUDGETS, TrainConfig

MOST_TOKENS: Final = 1e18
"""Above this, numbers of tokens no longer fit the 64-bit integers of the data room."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The numbers of a run, each default filled in."""

    count: Count
    """Parameters and FLOPs per token under the `exact` convention, at the spec's context."""
    sequences: int
    """Sequences in an optimiser step."""
    micro_batch: int
    """Sequences in a forward pass; divides `sequences`."""
    batch_tokens: int
    """Tokens in an optimiser step."""
    steps: int
    """Optimiser steps; the budget is passed by less than one step."""
    learning_rate: float
    """Peak learning rate."""

    @property
    def tokens(self) -> int:
        """Tokens that all steps see."""
        return self.steps * self.batch_tokens

    @property
    def flops_per_step(self) -> float:
        """Training FLOPs of a step."""
        return self.count.training_flops_per_token * self.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of all steps."""
        return self.steps * self.flops_per_step


def resolve(spec: DecoderSpec, config: TrainConfig, *, world: int = 1) -> Resolved:
    """Fill in batch, micro-batch and learning rate by rule, and turn the budget into whole steps.

    Args:
        spec: the model.
        config: how to train it.
        world: processes that share the batch; each takes the same number of whole micro-batches.

    Raises:
        InputError: if batch_tokens is not a multiple of the context, micro_batch does not divide the batch (or a
            process's share of it) or is too small a group for expert choice, or the budget is smaller than one step
            or too large to count.
    """
    counted = count(spec)
    per_token = counted.training_flops_per_token
    if config.flops is not None:
        tokens = config.flops / per_token
    elif config.tokens_per_parameter is not None:
        tokens = config.tokens_per_parameter * counted.params_active
    else:
        tokens = float(config.tokens or 0)
    least = _least_sequences(spec)
    if not tokens <= MOST_TOKENS:
        name = _budget(config)
        raise InputError(
            f"{name} is {getattr(config, name):g}, which is {tokens:.3g} tokens; a run can have at most "
            f"{MOST_TOKENS:.0g}."
        )
    batch = config.batch_tokens
    if batch is None:
        batch = rules.batch_tokens(tokens * per_token, context=spec.context, least_sequences=least)
    elif batch % spec.context:
        below = batch // spec.context * spec.context
        nearest = [value for value in (below, below + spec.context) if value > 0]
        raise InputError(
            f"batch_tokens is {batch}; it must be a multiple of context={spec.context}, e.g. "
            f"{' or '.join(map(str, nearest))}."
        )
    if tokens < batch:
        name = _budget(config)
        needed = {
            "tokens": f"{batch}",
            "flops": _at_least(batch * per_token),
            "tokens_per_parameter": _at_least(batch / counted.params_active),
        }[name]
        raise InputError(
            f"{name} is {getattr(config, name):g}, less than one step of {batch} tokens; give at least {needed}, or a "
            f"smaller batch_tokens."
        )
    sequences = batch // spec.context
    if sequences % world:
        raise InputError(
            f"batch_tokens is {batch}, which is {sequences} sequences; they must divide evenly among {world} processes."
        )
    share, whose = sequences // world, "the batch" if world == 1 else f"the share of each of {world} processes,"
    micro = config.micro_batch
    if micro is None:
        micro = rules.micro_batch(share, context=spec.context, vocab_size=spec.vocab_size, least=least)
    elif share % micro:
        raise InputError(
            f"micro_batch is {micro}; it must divide {whose} of {share} sequences, e.g. "
            f"{' or '.join(map(str, _nearest_divisors(share, micro)))}."
        )
    if spec.experts is not None and micro < least:
        raise InputError(
            f"micro_batch is {micro} sequences; expert choice with {spec.experts.n_choices} experts, "
            f"{spec.experts.top_k} a token, needs groups of at least {least}, or experts compute more than is counted."
        )
    return Resolved(
        count=counted,
        sequences=sequences,
        micro_batch=micro,
        batch_tokens=batch,
        steps=math.ceil(tokens / batch * (1 - 1e-12)),
        learning_rate=config.learning_rate or rules.learning_rate(_size(spec), moe=spec.experts is not None),
    )


def _size(spec: DecoderSpec) -> int:
    """Active parameters of the model without depth routing, by which the learning rate goes: same shape, same rate."""
    experts = None if spec.experts is None else replace(spec.experts, noop_experts=0)
    return count(replace(spec, depth_routing=None, experts=experts)).params_active


def _budget(config: TrainConfig) -> str:
    """The field that says how long to train."""
    return next(name for name in BUDGETS if getattr(config, name) is not None)


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    """The two divisors of `number` nearest to `wanted`."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    return sorted(sorted(divisors, key=lambda n: (abs(n - wanted), n))[:2])


def _least_sequences(spec: DecoderSpec) -> int:
    """Sequences that a group needs so that every expert takes a token at each position."""
    if spec.experts is None or spec.experts.router.kind != "expert_choice":
        return 1
    return math.ceil(spec.experts.n_choices / spec.experts.top_k)


def _at_least(value: float) -> str:
    """`value` rounded up to three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit) * unit:.3g}"
