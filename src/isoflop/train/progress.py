"""The progress of a run: steps, loss, tokens/s, FLOP/s, time left; on stderr."""

import sys
import time
from types import TracebackType
from typing import Final, Self

_PATIENCE_SECONDS: Final = 2.0
"""A run that ends sooner shows nothing."""
_LINE_SHARE: Final = 0.1
"""Where stderr is no terminal, a line is written each time this share of the steps is done …"""
_LINE_SECONDS: Final = 30.0
"""… or this many seconds have passed since the last one."""


class ProgressBar:
    """A bar that appears once a run has lasted longer than two seconds; plain lines where stderr is no terminal."""

    def __init__(self, *, enabled: bool, steps: int, done: int, batch_tokens: int, flops_per_step: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.enabled = enabled
        self.steps, self.done = steps, done
        self.batch_tokens, self.flops_per_step = batch_tokens, flops_per_step
        self.started = time.monotonic()
        self.line_at, self.line_tenth = self.started, self._tenth(done)
        self.bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task("training", total=steps, completed=done, status="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, loss: float | None) -> None:
        """Show that `step` steps are done; `loss` is the last one that is known."""
        if not self.enabled:
            return
        now = time.monotonic()
        seconds = now - self.started
        rate = (step - self.done) / max(seconds, 1e-9)
        shown = "" if loss is None else f"loss {loss:.3f}  "
        status = f"{shown}{_short(rate * self.batch_tokens)}tok/s  {_short(rate * self.flops_per_step)}FLOP/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, status=status)
            if seconds > _PATIENCE_SECONDS and not self.bar.live.is_started:
                self.bar.start()
        elif seconds > _PATIENCE_SECONDS and self._line_is_due(step, now):
            self.line_at, self.line_tenth = now, self._tenth(step)
            left = f"{(self.steps - step) / max(rate, 1e-9):.0f} s left"
            sys.stderr.write(f"training  step {step}/{self.steps} ({step / self.steps:.0%})  {status}  {left}\n")
            sys.stderr.flush()

    def _line_is_due(self, step: int, now: float) -> bool:
        return self._tenth(step) > self.line_tenth or now - self.line_at >= _LINE_SECONDS

    def _tenth(self, step: int) -> int:
        return int(step / self.steps / _LINE_SHARE + 1e-9)


def _short(value: float) -> str:
    for factor, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value:.3g} "
