"""One run in this process: its steps, evaluations and checkpoints.

B sequences in a forward pass, T tokens in a sequence, V vocabulary, X routed experts.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional

from isoflop.data import Batches
from isoflop.nn import Decoder, DepthStatistics, ExpertStatistics, calibrate_thresholds
from isoflop.spec import DecoderSpec
from isoflop.train.checkpoint import model_tensors, newest_checkpoint, prune, save_checkpoint
from isoflop.train.config import TrainConfig
from isoflop.train.directory import RunDirectory
from isoflop.train.distributed import Ranks
from isoflop.train.evaluation import Evaluation, measure
from isoflop.train.interrupt import Interrupts
from isoflop.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from isoflop.train.progress import ProgressBar
from isoflop.train.record import run_record
from isoflop.train.resolve import Resolved
from isoflop.train.schedule import learning_rate_share
from isoflop.train.start import start_from

DIVERGENCE_MARGIN = 1.0
"""A run has diverged when, after its warm-up, the mean training loss between two metric lines is this many nats above
the loss of the first step (an untrained model's)."""

CALIBRATION_TOKENS = 32768
"""Tokens of training text beyond the run's own on which the thresholds of an expert-choice model are calibrated."""


@dataclass(frozen=True)
class StepStatistics:
    """What the layers report about one step."""

    experts: tuple[ExpertStatistics, ...]
    """One per MoE layer."""
    depth: tuple[DepthStatistics, ...]
    """One per depth-routed block."""


class Run:
    """One run in this process: its model, optimiser and place in the schedule."""

    def __init__(
        self,
        spec: DecoderSpec,
        config: TrainConfig,
        plan: Resolved,
        *,
        batches: Batches,
        windows_WT: np.ndarray,
        bytes_per_token: float,
        directory: RunDirectory,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.spec, self.config, self.plan = spec, config, plan
        self.batches, self.windows_WT, self.bytes_per_token = batches, windows_WT, bytes_per_token
        self.directory, self.device, self.ranks = directory, device, ranks
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.model = Decoder(spec, seed=config.seed, device=device)
        self.model.activation_checkpointing = config.activation_checkpointing
        self.model.train()
        self.optimizer = build_optimizer(self.model, config, plan.learning_rate)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.step = 0
        self.wall_seconds = 0.0
        self.initial_loss: float | None = None
        self.train_loss: float | None = None
        self.loss_sum = torch.zeros((), device=device)
        self.loss_steps = 0
        self.first_bad = torch.full((), -1, device=device)
        self.error: str | None = None
        self._resume()

    def complete(self, progress: bool, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Train from where it stands to the end, evaluate, and write the record.

        SIGINT stops it after the step in progress, with a checkpoint.
        """
        plan, config = self.plan, self.config
        saved_at = time.monotonic()
        bar = ProgressBar(
            enabled=progress and self.ranks.rank == 0,
            steps=plan.steps,
            done=self.step,
            batch_tokens=plan.batch_tokens,
            flops_per_step=plan.flops_per_step,
        )
        with bar, self._metrics_file() as metrics, Interrupts() as interrupts:
            since = time.perf_counter()
            line_step, line_seconds = self.step, self.wall_seconds
            while self.step < plan.steps:
                grad_norm, output = self._train_step()
                last = self.step == plan.steps
                log = self.step == 1 or self.step % config.log_every == 0 or last
                evaluate = config.evaluate_every is not None and self.step % config.evaluate_every == 0 and not last
                stop = interrupts.noted
                save = self.ranks.rank == 0 and (last or stop or self._checkpoint_is_due(saved_at))
                if log or self.device.type == "cpu" or evaluate:  # reading the flag waits for the device
                    self._check_divergence(log)
                save = save and int(self.first_bad) < 0
                now = time.perf_counter()
                self.wall_seconds, since = self.wall_seconds + now - since, now
                if log:
                    seconds = max(self.wall_seconds - line_seconds, 1e-9)
                    speed = (self.step - line_step) * plan.batch_tokens / seconds
                    self._write(metrics, self._training_line(grad_norm, output, speed))
                    line_step, line_seconds = self.step, self.wall_seconds
                bar.update(self.step, self.train_loss)
                if self.error is not None:
                    break
                if evaluate:
                    self._write(metrics, self._evaluation_line(self._evaluate()))
                if last:
                    self._calibrate()
                if save:
                    self._save(metrics.tell(), finished=last)
                    saved_at = time.monotonic()
                if stop and not last:
                    raise KeyboardInterrupt
                if evaluate or save or last:
                    since = time.perf_counter()
            evaluation = self._evaluate() if self.error is None else None
            if evaluation is not None and not math.isfinite(evaluation.loss):
                self.error, evaluation = f"held-out loss is {evaluation.loss} at step {self.step}", None
            sampled = None
            if evaluation is not None:
                self._write(metrics, self._evaluation_line(evaluation))
                sampled = self._evaluate_as_sampled()
                if sampled is not None and not math.isfinite(sampled.loss):
                    self.error = f"held-out loss as sampled is {sampled.loss} at step {self.step}"
                    evaluation = sampled = None
        record = run_record(
            self.spec,
            config,
            plan,
            run_id=self.directory.path.resolve().name,
            steps=self.step,
            epochs=self.batches.epochs(self.step),
            wall_seconds=self.wall_seconds,
            bytes_per_token=self.bytes_per_token,
            evaluation=evaluation,
            sampled=sampled,
            train_loss=self.train_loss,
            error=self.error,
            extra=extra,
        )
        if self.ranks.rank == 0:
            if evaluation is not None and evaluation.load_LX:
                self.directory.write_expert_load(evaluation.load_LX)
            self.directory.finish(record)
            if self.error is None:
                prune(self.directory.checkpoints, config.keep_checkpoints)
        return record

    def _checkpoint_is_due(self, saved_at: float) -> bool:
        seconds, steps = self.config.checkpoint_seconds, self.config.checkpoint_steps
        by_time = seconds is not None and time.monotonic() - saved_at > seconds
        return by_time or (steps is not None and self.step % steps == 0)

    def _train_step(self) -> tuple[torch.Tensor, StepStatistics]:
        """One optimiser step; the norm of its gradient, and statistics averaged over its micro-batches."""
        plan = self.plan
        share = learning_rate_share(self.step, plan.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * share
        batch_BT = self._to_device(self.batches.batch(self.step, rank=self.ranks.rank, world=self.ranks.world))
        micro_batches = batch_BT.split(plan.micro_batch)
        losses, experts, depth = [], [], []
        self.optimizer.zero_grad(set_to_none=True)
        for micro_BT in micro_batches:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                output = self.forward(micro_BT[:, :-1])
            loss = functional.cross_entropy(output.logits_BTV.float().flatten(0, 1), micro_BT[:, 1:].flatten())
            ((loss + output.auxiliary_loss) / len(micro_batches)).backward()
            losses.append(loss.detach())
            experts.append(output.experts)
            depth.append(output.depth)
        statistics = StepStatistics(_mean(ExpertStatistics, experts), _mean(DepthStatistics, depth))
        loss = torch.stack(losses).mean()
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        self.ranks.mean_([*gradients, loss, *(layer.load_X for layer in statistics.experts)])
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.model.update_router_bias(statistics.experts)
        self.step += 1
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm)) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        self.loss_sum += loss
        self.loss_steps += 1
        return grad_norm, statistics

    def _to_device(self, batch_BT: np.ndarray) -> torch.Tensor:
        tokens_BT = torch.from_numpy(batch_BT)
        if self.device.type == "cuda":
            return tokens_BT.pin_memory().to(self.device, non_blocking=True)
        return tokens_BT.to(self.device)

    def _check_divergence(self, log: bool) -> None:
        """Set `error` if loss or gradient was not finite, or (at a metrics line) the loss is far above the first."""
        first_bad = int(self.first_bad)
        if first_bad >= 0:
            self.error = f"loss or gradient is not finite at step {first_bad}"
        if not log:
            return
        self.train_loss = float(self.loss_sum) / self.loss_steps
        if self.initial_loss is None:
            self.initial_loss = self.train_loss
        limit = self.initial_loss + DIVERGENCE_MARGIN
        warm = self.step > self.config.warmup_fraction * self.plan.steps
        if self.error is None and warm and self.train_loss > limit:
            self.error = f"training loss is {self.train_loss:.3f} at step {self.step}, above {limit:.3f}"

    def _training_line(
        self, grad_norm: torch.Tensor, statistics: StepStatistics, tokens_per_second: float
    ) -> dict[str, Any]:
        """A line of metrics; `loss` is the mean over the steps since the last line."""
        plan, experts, depth = self.plan, statistics.experts, statistics.depth
        line = {
            **self._place(),
            "loss": self.train_loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": float(grad_norm),
            "tokens_per_second": tokens_per_second,
            "flops_per_second": tokens_per_second * plan.count.training_flops_per_token,
            "wall_seconds": self.wall_seconds,
        }
        if experts:
            line |= {
                "load_max": max(float(layer.load_X.max()) * len(layer.load_X) for layer in experts),
                "router_entropy": sum(float(layer.entropy) for layer in experts) / len(experts),
                "dropped_share": sum(float(layer.dropped_share) for layer in experts) / len(experts),
                "auxiliary_loss": sum(float(layer.auxiliary_loss) for layer in experts),
            }
        if depth:
            line |= {
                "kept_share": sum(float(block.kept_share) for block in depth) / len(depth),
                "depth_agreement": sum(float(block.agreement) for block in depth) / len(depth),
                "depth_score_std": sum(float(block.score_std) for block in depth) / len(depth),
                "depth_auxiliary_loss": sum(float(block.auxiliary_loss) for block in depth),
            }
        self.loss_sum.zero_()
        self.loss_steps = 0
        return line

    def _evaluation_line(self, evaluation: Evaluation) -> dict[str, Any]:
        return {**self._place(), "held_out_loss": evaluation.loss, "held_out_loss_std": evaluation.loss_std}

    def _place(self) -> dict[str, Any]:
        plan = self.plan
        place = {"step": self.step, "tokens": self.step * plan.batch_tokens, "flops": self.step * plan.flops_per_step}
        return place if self.spec.is_causal else {**place, "causal": False}

    def _evaluate(self) -> Evaluation:
        return measure(
            self.model, self.windows_WT, batch_size=self.plan.micro_batch, dtype=self.dtype, ranks=self.ranks
        )

    def _calibrate(self) -> None:
        """Set the thresholds by which the model samples; the finished run's checkpoint holds them."""
        if not self.model.needs_calibration:
            return
        plan, micro_batches = self.plan, []
        for step in range(plan.steps, plan.steps + math.ceil(CALIBRATION_TOKENS / plan.batch_tokens)):
            micro_batches += self._to_device(self.batches.batch(step)).split(plan.micro_batch)
        needed = math.ceil(CALIBRATION_TOKENS / (plan.micro_batch * self.spec.context))
        self.model.eval()
        calibrate_thresholds(self.model, [micro_BT[:, :-1] for micro_BT in micro_batches[:needed]])
        self.model.train()

    def _evaluate_as_sampled(self) -> Evaluation | None:
        """As `_evaluate`, deciding token by token; None if the model never decides otherwise."""
        if not self.model.needs_calibration and not self.model.depth_routers:
            return None
        self.model.decisions = "sampled"
        evaluation = self._evaluate()
        self.model.decisions = "trained"
        return evaluation

    def _metrics_file(self) -> Any:
        return self.directory.metrics.open("ab") if self.ranks.rank == 0 else nullcontext()

    def _write(self, metrics: Any, line: Mapping[str, Any]) -> None:
        if metrics is not None:
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in line.items()
            }
            metrics.write(json.dumps(finite).encode() + b"\n")
            metrics.flush()

    def _save(self, metrics_bytes: int, *, finished: bool) -> None:
        """Write a checkpoint; that of the last step has no optimiser state, which nothing would read."""
        self.directory.flush_metrics()
        save_checkpoint(
            self.directory.checkpoints,
            model=model_tensors(self.model),
            optimizer={} if finished else optimizer_tensors(self.optimizer, self.model),
            state={
                "step": self.step,
                "tokens": self.step * self.plan.batch_tokens,
                "wall_seconds": self.wall_seconds,
                "initial_loss": self.initial_loss,
                "train_loss": self.train_loss,
                "loss_sum": float(self.loss_sum),
                "loss_steps": self.loss_steps,
                "metrics_bytes": metrics_bytes,
            },
            keep=self.config.keep_checkpoints,
        )

    def _resume(self) -> None:
        """Continue from the newest sound checkpoint; if there is none, start from `init`."""
        leader = self.ranks.rank == 0
        checkpoint = newest_checkpoint(self.directory.checkpoints, repair=leader) if leader else None
        self.ranks.barrier()
        if not leader:
            checkpoint = newest_checkpoint(self.directory.checkpoints)
        if checkpoint is None:
            if self.config.init is not None:
                start_from(self.model, self.config.init)
            if leader:
                self.directory.truncate_metrics(0)
            return
        state = checkpoint.state
        checkpoint.load_model(self.model)
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optimizer_tensors())
        self.step, self.wall_seconds = state["step"], state["wall_seconds"]
        self.initial_loss, self.train_loss = state["initial_loss"], state["train_loss"]
        self.loss_sum.fill_(state["loss_sum"])
        self.loss_steps = state["loss_steps"]
        if leader:
            self.directory.truncate_metrics(state["metrics_bytes"])


Statistics = TypeVar("Statistics", ExpertStatistics, DepthStatistics)


def _mean(kind: type[Statistics], micro_batches: Sequence[Sequence[Statistics]]) -> tuple[Statistics, ...]:
    """Layer by layer, the mean of every member over micro-batches, without gradients."""
    return tuple(
        kind(
            **{
                field.name: torch.stack([getattr(layer, field.name).detach() for layer in layers]).mean(0)
                for field in fields(kind)
            }
        )
        for layers in zip(*micro_batches, strict=True)
    )
