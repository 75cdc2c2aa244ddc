"""What a study shows while it runs, on stderr: a bar for the whole, and a line for every run that ends."""

import math
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from isoflop.study.grid import PlannedRun, short


class StudyProgress:
    """Bar and lines; without a terminal only the lines."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(stderr=True, quiet=not enabled, highlight=False, width=160)
        self._bar: Progress | None = None
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("study", total=1.0, status="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(Text(sentence), soft_wrap=True)

    def update(self, description: str, share: float, status: str) -> None:
        """Move the bar to `share` (0 … 1)."""
        if self._bar is not None:
            self._bar.update(self._task, description=description, completed=min(share, 1.0), status=status)

    def ended(self, run: PlannedRun, row: dict[str, Any], seconds: float | None, done: int, total: int) -> None:
        """Print the line of a run that has ended."""
        shape = f"d{run.spec.d_model}×{run.spec.n_layers}"
        what = f"{run.architecture:<18} {short(run.budget):>7} FLOPs  {shape:<8} seed {run.seed}"
        outcome = f"loss {row['loss']:.4f}" if row.get("loss") is not None else str(row.get("status"))
        took = "" if seconds is None else f"  {duration(seconds)}"
        stage = "" if run.stage == "grid" else f"  ({run.stage.replace('_', ' ')})"
        self.say(f"[{done}/{total}] {what}  {outcome}{took}{stage}")
        if row.get("error"):
            self.say("    " + str(row["error"]).replace("\n", "\n    "))


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 12.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
