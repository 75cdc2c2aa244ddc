"""The progress bar of a run: steps, loss, tokens/s, FLOP/s, time left; on stderr, only on a terminal."""

import time
from types import TracebackType
from typing import Self

_PATIENCE_SECONDS = 2.0


class ProgressBar:
    """A bar that appears once a run has lasted longer than two seconds; silent where stderr is not a terminal."""

    def __init__(self, *, enabled: bool, steps: int, done: int, batch_tokens: int, flops_per_step: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.steps, self.done = steps, done
        self.batch_tokens, self.flops_per_step = batch_tokens, flops_per_step
        self.started = time.monotonic()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if enabled and console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=console,
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
        if self.bar is None:
            return
        seconds = time.monotonic() - self.started
        rate = (step - self.done) / max(seconds, 1e-9)
        shown = "" if loss is None else f"loss {loss:.3f}  "
        status = f"{shown}{_short(rate * self.batch_tokens)} tok/s  {_short(rate * self.flops_per_step)}FLOP/s"
        self.bar.update(self.task, completed=step, status=status)
        if seconds > _PATIENCE_SECONDS and not self.bar.live.is_started:
            self.bar.start()


def _short(value: float) -> str:
    for factor, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value:.3g} "
