"""Curves over ln r that integer models are points of: where they are least, and columns between the points."""

import numpy as np


def lowest(at: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Where each curve [B, n] at evenly spaced points [n] is least: by a parabola through the lowest and two beside."""
    index = np.argmin(curves, axis=1)
    inner = np.clip(index, 1, len(at) - 2)
    left, middle, right = (curves[np.arange(len(curves)), inner + step] for step in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = 0.5 * (left - right) / (left - 2 * middle + right)
    shift = np.where((index == inner) & np.isfinite(shift), shift, index - inner)
    return np.asarray(at[inner] + shift * (at[1] - at[0]))


def smooth(log_ratio: np.ndarray, values: np.ndarray, at: np.ndarray, degree: int) -> np.ndarray:
    """A column at other ratios."""
    if np.ptp(values) == 0 or not (values > 0).all():
        return np.full(len(at), float(values[0]))
    return np.asarray(np.exp(np.polyval(np.polyfit(log_ratio, np.log(values), degree), at)))
