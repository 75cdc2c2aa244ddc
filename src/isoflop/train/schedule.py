"""The learning rate over a run, as a share of its peak."""

import math

from isoflop.train.config import TrainConfig


def learning_rate_share(step: int, steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate in step `step` (from 0) of `steps`.

    Linear warm-up, then `cosine` (Loshchilov & Hutter 2017, arXiv 1608.03983, one period, to final_lr_fraction) or
    `wsd`: constant, then linear decay (Hu et al. 2024, arXiv 2404.06395).
    """
    final = config.final_lr_fraction
    warmup = round(config.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = max(1, round(config.decay_fraction * steps))
    progress = max(0.0, (step + 1 - (steps - decay)) / decay)
    return 1 - (1 - final) * progress
