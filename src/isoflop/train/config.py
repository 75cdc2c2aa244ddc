"""How a model is trained."""

import os
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from isoflop.errors import InputError

Schedule = Literal["cosine", "wsd"]
Dtype = Literal["float32", "bfloat16"]
BUDGETS: Final = ("tokens", "flops", "tokens_per_parameter")
"""The three ways to say how long to train; a configuration names exactly one."""
OPERATIONAL: Final = ("checkpoint_seconds", "checkpoint_steps", "keep_checkpoints", "threads", "device")
"""Fields that say how a run is carried out, not what it computes: they may change when it is resumed."""

MOST_THREADS: Final = 1024
"""Above this a process may fail to start its threads."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: its budget, optimiser, schedule, precision, evaluation and checkpoints."""

    tokens: float | None = None
    """Budget: tokens to train on."""
    flops: float | None = None
    """Budget: training FLOPs, counted under the `exact` convention."""
    tokens_per_parameter: float | None = None
    """Budget: tokens per active non-embedding parameter (20: the usual rule of thumb for dense models)."""
    batch_tokens: int | None = None
    """Tokens in one optimiser step, a multiple of the context; default: the rule of train/rules.py."""
    micro_batch: int | None = None
    """Sequences in one forward pass; gradients accumulate over the batch. It is also the group from which expert
    choice takes tokens. Default: the whole batch, or as much of it as keeps the logits within 512 MiB."""
    learning_rate: float | None = None
    """Peak learning rate; default: the rule of train/rules.py."""
    schedule: Schedule = "cosine"
    """cosine: half a cosine after the warm-up; wsd: constant, then linear over the last decay_fraction."""
    warmup_fraction: float = 0.02
    """Share of the steps over which the learning rate rises linearly from 0."""
    final_lr_fraction: float = 0.1
    """Learning rate of the last step as a share of the peak."""
    decay_fraction: float = 0.2
    """wsd only: share of the steps over which the learning rate falls."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices (attention, feed-forward, experts, router, untied head); norms and
    embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    clip: float = 1.0
    """Largest norm of the whole gradient; larger ones are scaled down to it."""
    dtype: Dtype = "float32"
    """float32, or bfloat16 by autocast (weights and optimiser stay float32)."""
    compile: bool = False
    """Whether to compile the model with torch.compile."""
    activation_checkpointing: bool = False
    """Whether blocks recompute their activations in the backward pass, for less memory."""
    init: str | None = None
    """Run directory, checkpoint or Hugging Face Llama directory whose weights the training starts from; the spec must
    be theirs, or theirs with depth_routing added. Default: random weights."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    evaluation_tokens: int = 131072
    """Tokens of held-out text in the fixed evaluation set (at most; at least one window)."""
    evaluate_every: int | None = None
    """Evaluate each time this many steps are done; default: only at the end."""
    log_every: int = 10
    """Write a line of metrics each time this many steps are done."""
    checkpoint_seconds: float | None = 60.0
    """Write a checkpoint when this many seconds have passed since the last; none: not by time."""
    checkpoint_steps: int | None = None
    """Write a checkpoint each time this many steps are done; none: not by steps."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, newest first; 0: none once the run is done (its model cannot be sampled then)."""
    threads: int | None = None
    """CPU threads of torch; default: torch's own choice. Bit-for-bit repeats need the same number."""
    device: str | None = None
    """Device such as cpu, cuda or cuda:1; default: cuda where there is one, else cpu."""

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) != 1:
            given = "none is" if not budgets else " and ".join(budgets) + " are"
            raise InputError(f"budget: {given} given; give exactly one of {', '.join(BUDGETS)}.")
        for name in (
            *BUDGETS, "batch_tokens", "micro_batch", "learning_rate", "clip", "evaluation_tokens", "evaluate_every",
            "log_every", "checkpoint_seconds", "checkpoint_steps", "threads",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; it must be a finite number greater than 0.")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InputError(f"threads is {self.threads}; it must be at most {MOST_THREADS}.")
        for name in ("weight_decay", "keep_checkpoints", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a finite number, 0 or more.")
        for name in ("warmup_fraction", "final_lr_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise InputError(
                f"decay_fraction is {self.decay_fraction}; with warmup_fraction={self.warmup_fraction} it can be at "
                f"most {1 - self.warmup_fraction:g}."
            )
        for name, allowed in (("schedule", get_args(Schedule)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {self.betas}; it must be two numbers from 0 to below 1.")
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.init is not None:
            object.__setattr__(self, "init", os.fspath(self.init))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `TrainConfig(**it)` is equal."""
        return asdict(self) | {"betas": list(self.betas)}
