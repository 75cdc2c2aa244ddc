"""From a data directory to training batches and evaluation windows."""

from typing import Final

import numpy as np
import numpy.typing as npt

from isoflop.data.tokens import TokenData
from isoflop.errors import InputError

_CACHED_EPOCHS: Final = 2


class Batches:
    """Training batches as a pure function of the step.

    An epoch cuts the training tokens into W = (tokens - context) // context windows of context + 1 tokens (inputs and
    targets overlap by one) that start at a random offset below `context`, and serves them in random order, each once.
    Offset and order depend on the seed and the epoch alone; they come from Philox, whose output is fixed across NumPy
    versions. A step may take the last windows of one epoch and the first of the next.

    Args:
        data: the data directory.
        context: tokens that the model sees at once.
        batch_size: windows in a step, over all ranks.
        seed: of offsets and orders.

    Raises:
        InputError: if the training split cannot fill one batch with different windows.
    """

    def __init__(self, data: TokenData, *, context: int, batch_size: int, seed: int = 0) -> None:
        _require_positive(context=context, batch_size=batch_size)
        if not 0 <= seed < 2**64:
            raise InputError(f"seed is {seed}; it must be between 0 and 2**64 - 1.")
        self._tokens = data.tokens("train")
        needed = (batch_size + 1) * context
        if len(self._tokens) < needed:
            raise InputError(
                f"the training split of {data.path} has {len(self._tokens)} tokens; batch_size {batch_size} and "
                f"context {context} need at least {needed}: prepare more text, or lower them."
            )
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.windows_per_epoch = (len(self._tokens) - context) // context
        self._starts: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """Token ids of `step` (from 0): [batch_size / world, context + 1], the share of one rank.

        Raises:
            InputError: if `world` does not divide batch_size, or step or rank is out of range.
        """
        _require_positive(world=world)
        if step < 0:
            raise InputError(f"step is {step}; it must not be negative.")
        if self.batch_size % world:
            raise InputError(f"world is {world}; it must divide batch_size={self.batch_size}.")
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank}; it must be between 0 and {world - 1}.")
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        numbers = np.arange(first, first + share)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        starts = np.concatenate([self._epoch(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])
        return self._tokens.windows(starts, self.context + 1)

    def epochs(self, steps: int) -> float:
        """How often `steps` steps go through the training split; above 1, windows repeat."""
        return steps * self.batch_size / self.windows_per_epoch

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Start of every window of an epoch, in the order served."""
        known = self._starts.get(epoch)
        if known is None:
            source = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
            offset, *_ = source.random_raw(1).tolist()
            order = np.argsort(source.random_raw(self.windows_per_epoch), kind="stable")
            known = order * self.context + offset % self.context
            recent = sorted([*self._starts.items(), (epoch, known)], key=lambda item: abs(item[0] - epoch))
            self._starts = dict(recent[:_CACHED_EPOCHS])
        return known


def evaluation_windows(data: TokenData, *, context: int, tokens: int) -> npt.NDArray[np.int64]:
    """Fixed windows, spread evenly over the validation split: [W, context + 1].

    The split is cut into windows from its start; W = tokens // context of them (at least one, at most all) are taken at
    even distances, so the same arguments always give the same windows, whatever the seed of a run.

    Raises:
        InputError: if the validation split does not fill one window.
    """
    _require_positive(context=context, tokens=tokens)
    held_out = data.tokens("validation")
    available = (len(held_out) - 1) // context
    if available < 1:
        raise InputError(
            f"the validation split of {data.path} has {len(held_out)} tokens; one window of context {context} needs "
            f"{context + 1}: prepare more text or a larger validation_fraction."
        )
    windows = min(max(tokens // context, 1), available)
    starts = np.arange(windows) * available // windows * context
    return held_out.windows(starts, context + 1)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")
