"""What repeats with other seeds say: the noise floor, and whether a law misses more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.reading import derive
from isoflop.laws.result import Fit
from isoflop.laws.table import RunTable

SETTINGS: Final = (
    *("params_total", "params_active", "params_embedding", "tokens", "unique_tokens", "flops_convention", "n_layers"),
    *("d_model", "d_ff", "d_expert", "n_heads", "granularity", "expansion_rate", "n_experts", "top_k", "sparsity"),
    *("expert_attention_ratio", "depth_capacity", "router", "architecture", "study", "context", "vocab_size"),
    *("output_norm", "batch_tokens", "batch_size", "bs", "steps", "step", "learning_rate", "lr", "causal", "optimizer"),
    *("weight_decay", "warmup", "dataset"),
)
"""Columns that a repeat shares with the run that it repeats, where a table has them."""

_DIGITS = 9  # significant ones in which columns of repeats agree


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The noise of ln L from one seed to another."""

    sd: float
    """Standard deviation of ln L of one run."""
    interval: tuple[float, float]
    """Of sd, by the chi² distribution of the repeats."""
    level: float
    """Coverage of the interval."""
    n_repeats: int
    """Rows beside the first of each set of repeats: the degrees of freedom of sd."""
    n_sets: int
    """Sets of repeats."""

    def difference(self, level: float = 0.9) -> float:
        """How far apart in ln L two single runs lie by noise alone, at most, in this share of cases."""
        from scipy.special import stdtrit  # scipy is slow to import, and most users of laws do without

        return float(stdtrit(self.n_repeats, (1 + level) / 2) * np.sqrt(2) * self.sd)

    def tells_apart(self, first: Any, second: Any, level: float = 0.9) -> np.ndarray:
        """Whether losses of single runs differ by more than noise, with the shapes of the two broadcast.

        For all pairs of n rows give losses[:, None] and losses[None].
        """
        apart = np.abs(np.log(np.asarray(first, dtype=float)) - np.log(np.asarray(second, dtype=float)))
        return np.asarray(apart > self.difference(level))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return {**vars(self), "interval": list(self.interval), "difference": self.difference(self.level)}


@dataclass(frozen=True, kw_only=True)
class LackOfFit:
    """F test of a law by its rows that repeat others."""

    statistic: float
    """F: mean square of what the law misses on average over repeats, by that of the repeats about their own mean."""
    p_value: float
    """How often noise alone would make F at least as large; small: the law misses more than noise."""
    n_settings: int
    """Different rows, repeats counted once."""
    n_repeats: int
    misfit: float
    """Standard deviation of ln L by which the law misses beside the noise, 0 if it is not seen."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return dict(vars(self))


def repeats(runs: RunTable, columns: Sequence[str] = ()) -> np.ndarray:
    """Number of the setting that each row has [n]; rows of one setting differ in their seed alone.

    Rows repeat each other if they agree in these columns and in all of SETTINGS that the table has. Without a column
    seed, or where two rows share their seed, nothing tells a repeat from a run with something else changed, and every
    row stands alone.
    """
    names = list(dict.fromkeys((*columns, *(name for name in SETTINGS if name in runs))))
    keys = list(zip(*(_keys(runs[name]) for name in names), strict=True)) if names else [()] * len(runs)
    seeds = runs["seed"].tolist() if "seed" in runs else [None] * len(runs)
    number: dict[Any, int] = {}
    seen: set[Any] = set()
    setting = np.empty(len(runs), dtype=int)
    for index, (key, seed) in enumerate(zip(keys, seeds, strict=True)):
        known = isinstance(seed, str) or (seed is not None and np.isfinite(seed))
        alone = not known or (key, seed) in seen
        seen.add((key, seed))
        setting[index] = number.setdefault((key, index) if alone else key, len(number))
    return setting


def noise_floor(
    runs: RunTable, columns: Sequence[str] = (), *, target: str = "loss", level: float = 0.9
) -> NoiseFloor | None:
    """The noise of ln L from repeats with other seeds; None where no row repeats another.

    Args:
        runs: the runs; those that are not done are left out.
        columns: columns in which repeats agree beside SETTINGS, such as those that a law reads.
        target: column of the loss.
        level: coverage of the interval of the standard deviation.

    Raises:
        InputError: if the level is not between 0 and 1, or the column of the loss is absent.
    """
    from scipy.special import chdtri

    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; it must be between 0 and 1.")
    done = derive(runs.usable())
    loss = done.numeric(target)
    keep = np.isfinite(loss) & (loss > 0)
    squares, freedom, n_sets = _within(np.log(loss[keep]), repeats(done, columns)[keep])
    if not freedom:
        return None
    ends = [float(np.sqrt(squares / chdtri(freedom, tail))) for tail in ((1 - level) / 2, (1 + level) / 2)]
    return NoiseFloor(
        sd=float(np.sqrt(squares / freedom)),
        interval=(ends[0], ends[1]),
        level=level,
        n_repeats=freedom,
        n_sets=n_sets,
    )


def lack_of_fit(fit: Fit) -> LackOfFit | None:
    """Test a fit by its rows that repeat others; None without repeats, or with no more settings than parameters.

    The law is fitted again by least squares, for which the test is made (Draper and Smith 1998, Applied Regression
    Analysis, ch. 2): F = ((SS - SS_repeats) / (m - p)) / (SS_repeats / (n - m)), n rows in m settings, p parameters. It
    is exact for a law that is linear near its minimum, and outliers among the repeats weaken it.

    Raises:
        InputError: if the fit shares its irreducible loss with other groups.
    """
    from scipy.special import fdtrc

    from isoflop.laws.fitting import refit

    squares = refit(replace(fit, huber_delta=None, weights=None, priors={}), fit.runs)
    setting = repeats(fit.runs, fit.form.columns)
    n_settings = len(np.unique(setting))
    pure, freedom, _ = _within(np.log(fit.runs.numeric(fit.form.target)), setting)
    spare = n_settings - fit.n_free
    if not freedom or spare < 1:
        return None
    missed = max(float(np.sum(squares.residuals**2)) - pure, 0.0)
    statistic = (missed / spare) / max(pure / freedom, 1e-300)
    per_setting = (fit.n_rows) / n_settings
    return LackOfFit(
        statistic=statistic,
        p_value=float(fdtrc(spare, freedom, statistic)),
        n_settings=n_settings,
        n_repeats=freedom,
        misfit=float(np.sqrt(max(missed / spare - pure / freedom, 0.0) / per_setting)),
    )


def _within(log_loss: np.ndarray, setting: np.ndarray) -> tuple[float, int, int]:
    """Squares about the mean of each setting, their degrees of freedom, and how many settings have repeats."""
    _, place, count = np.unique(setting, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weights=log_loss) / count
    return float(np.sum((log_loss - mean[place]) ** 2)), int(np.sum(count - 1)), int(np.sum(count > 1))


def _keys(values: np.ndarray) -> list[Any]:
    """Values that are equal where columns of repeats agree."""
    if values.dtype == object:
        return [str(value) for value in values]
    return [f"{value:.{_DIGITS - 1}e}" for value in values.tolist()]
