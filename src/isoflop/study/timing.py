"""How long runs will take: from short timed trials, and from the runs that have ended."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isoflop.spec import spec_to_dict
from isoflop.study.grid import PlannedRun
from isoflop.study.store import StudyStore
from isoflop.train import TrainConfig

TRIAL_STEPS = 4
"""Optimiser steps of a trial; the first is not timed."""
TRIAL_TOKENS = 4096
"""Tokens in a step of a trial, unless the run's own step is smaller."""
EVALUATION_COST = 1 / 3
"""Cost of a held-out token as a share of a training token: the forward pass alone."""
START_SECONDS = 0.3
"""What a run takes besides its steps and its evaluation: building the model, writing its files."""


class Timing:
    """Seconds per training token of every model, as measured with the study's workers and threads."""

    def __init__(self, store: StudyStore, *, workers: int, threads: int) -> None:
        self.store, self.workers, self.threads = store, workers, threads
        self._known: dict[str, dict[str, Any] | None] = {}
        self._predicted = self._measured = 0.0

    def seconds(self, run: PlannedRun) -> float | None:
        """Predicted duration of a run; None before its model has been timed."""
        known = self._read(self._key(run))
        if known is None:
            return None
        seconds = known["seconds_per_token"] * _token_equivalents(run)
        if known["source"] == "trial" and self._predicted:
            seconds *= self._measured / self._predicted
        return float(seconds + START_SECONDS)

    def remaining(self, runs: Iterable[PlannedRun], elapsed: Mapping[str, float]) -> float | None:
        """Predicted seconds until these runs have ended; `elapsed`: seconds that running ones have taken.

        None if no model has been timed. A model that has not been timed counts as the mean of the others.
        """
        runs = list(runs)
        known = [(run, seconds) for run in runs if (seconds := self.seconds(run)) is not None]
        if not known:
            return 0.0 if not runs else None
        mean_rate = sum(seconds for _, seconds in known) / sum(run.resolved.flops for run, _ in known)
        left = []
        for run in runs:
            seconds = self.seconds(run)
            seconds = run.resolved.flops * mean_rate if seconds is None else seconds
            left.append(max(seconds - elapsed.get(run.run_id, 0.0), 0.0))
        return max(max(left), sum(left) / self.workers)

    def seconds_per_flop(self, runs: Iterable[PlannedRun]) -> float | None:
        """Predicted seconds per training FLOP of the largest of these models that has been timed; None if none has."""
        known = [(run, seconds) for run in runs if (seconds := self.seconds(run)) is not None]
        if not known:
            return None
        run, seconds = max(known, key=lambda each: each[0].resolved.count.training_flops_per_token)
        return seconds / run.resolved.flops

    def trials(self, runs: Sequence[PlannedRun]) -> list[tuple[str, PlannedRun, TrainConfig]]:
        """(key, run, configuration) of the trials that are missing, the largest first."""
        missing = {self._key(run): run for run in runs if self._read(self._key(run)) is None}
        ordered = sorted(missing.items(), key=lambda item: -item[1].resolved.count.training_flops_per_token)
        return [(key, run, _trial_config(run)) for key, run in ordered]

    def record_trial(self, key: str, run: PlannedRun, seconds_per_step: float) -> None:
        """Keep what a trial measured."""
        self._write(
            key, {"seconds_per_token": seconds_per_step / (_trial_config(run).batch_tokens or 1), "source": "trial"}
        )

    def observe(self, run: PlannedRun, row: Mapping[str, Any], seconds: float | None) -> None:
        """Learn from a run that has ended; `seconds`: what it took as a whole, if this process saw all of it."""
        key = self._key(run)
        known = self._read(key)
        if seconds is not None and known is not None and known["source"] == "trial":
            self._predicted += known["seconds_per_token"] * _token_equivalents(run)
            self._measured += max(seconds - START_SECONDS, 0.0)
        rate = row.get("tokens_per_second")
        if row.get("status") == "done" and rate:
            self._write(key, {"seconds_per_token": 1 / rate, "source": "run"})

    def _key(self, run: PlannedRun) -> str:
        config = run.config
        content = [spec_to_dict(run.spec), self.workers, self.threads, config.dtype, config.compile, config.device]
        content += [config.activation_checkpointing]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def _read(self, key: str) -> dict[str, Any] | None:
        if self._known.get(key) is None:
            self._known[key] = self.store.read_json(f"timing/{key}.json")
        return self._known[key]

    def _write(self, key: str, values: dict[str, Any]) -> None:
        self._known[key] = values
        self.store.write_json(f"timing/{key}.json", values)


def _token_equivalents(run: PlannedRun) -> float:
    """Training tokens that cost what the run's steps and its final evaluation cost."""
    return run.resolved.tokens + EVALUATION_COST * run.config.evaluation_tokens


def _trial_config(run: PlannedRun) -> TrainConfig:
    """A few steps of the run, with a smaller batch if its own is large."""
    sequence = run.spec.context
    smallest = run.resolved.micro_batch * sequence
    batch = min(run.resolved.batch_tokens, max(smallest, TRIAL_TOKENS // sequence * sequence))
    if run.resolved.batch_tokens % batch or batch % smallest:
        batch = smallest
    return replace(
        run.config,
        flops=None,
        tokens=batch * TRIAL_STEPS,
        batch_tokens=batch,
        evaluation_tokens=1,
        evaluate_every=None,
        log_every=1,
        checkpoint_seconds=None,
        checkpoint_steps=None,
        keep_checkpoints=0,
        warmup_fraction=0.0 if run.config.schedule == "wsd" else run.config.warmup_fraction,
    )
