"""Batches: each window once an epoch, ranks that partition a batch, any step at any time; fixed evaluation windows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import Batches, TokenData, evaluation_windows, prepare
from isoflop.data.batches import Batches as BatchesClass
from isoflop.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    """Documents of numbers that never repeat, so that a window is known by its tokens; three training shards."""
    directory = tmp_path_factory.mktemp("batches")
    lines = "\n\n".join(f"{number:07d}" for number in range(900))
    (directory / "text.txt").write_text(lines)
    prepare(
        directory / "text.txt",
        directory / "data",
        document_bytes=256,
        validation_fraction=0.2,
        shard_tokens=3001,
    )
    return TokenData(directory / "data")


shapes = st.fixed_dictionaries(
    {
        "context": st.integers(min_value=20, max_value=200),
        "batch_size": st.integers(min_value=1, max_value=24),
        "seed": st.integers(min_value=0, max_value=2**64 - 1),
    }
)


def starts(batches: BatchesClass, data: TokenData, step: int) -> list[int]:
    """Where the windows of a step start in the training split; unique, because the text is."""
    text = np.asarray(data.tokens("train")).astype(np.uint16).tobytes()
    found = []
    for window in batches.batch(step):
        at = text.find(window.astype(np.uint16).tobytes())
        assert at >= 0
        assert at % 2 == 0
        found.append(at // 2)
    return found


@settings(max_examples=40, deadline=None)
@given(shape=shapes)
def test_within_an_epoch_no_window_repeats_and_none_is_left_out(data: TokenData, shape: dict[str, int]) -> None:
    batches = Batches(data, **shape)
    count, context, size = batches.windows_per_epoch, shape["context"], shape["batch_size"]
    steps = -(-2 * count // size)
    served = [start for step in range(steps) for start in starts(batches, data, step)]
    first, second = served[:count], served[count : 2 * count]
    for epoch in (first, second):
        ordered = sorted(epoch)
        assert ordered[0] < context
        assert np.diff(ordered).tolist() == [context] * (count - 1)
        assert ordered[-1] + context + 1 <= len(data.tokens("train"))
        assert len(data.tokens("train")) - (ordered[-1] + context + 1) < 2 * context
    assert batches.epochs(steps) == steps * size / count >= 2


@settings(max_examples=40, deadline=None)
@given(shape=shapes, world=st.integers(1, 6), step=st.integers(0, 10_000))
def test_ranks_partition_the_batch(data: TokenData, shape: dict[str, int], world: int, step: int) -> None:
    shape["batch_size"] = world * max(1, shape["batch_size"] // world)
    batches = Batches(data, **shape)
    whole = batches.batch(step)
    assert whole.dtype == np.int64
    assert whole.shape == (shape["batch_size"], shape["context"] + 1)
    shares = [batches.batch(step, rank=rank, world=world) for rank in range(world)]
    assert {share.shape for share in shares} == {(shape["batch_size"] // world, shape["context"] + 1)}
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@settings(max_examples=20, deadline=None)
@given(shape=shapes, steps=st.lists(st.integers(0, 2_000), min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_alone(data: TokenData, shape: dict[str, int], steps: list[int]) -> None:
    resumed = Batches(data, **shape)
    for step in steps:
        np.testing.assert_array_equal(resumed.batch(step), Batches(data, **shape).batch(step))


def test_epochs_and_seeds_differ(data: TokenData) -> None:
    batches = Batches(data, context=32, batch_size=8, seed=3)
    whole_epoch = batches.windows_per_epoch
    alone = Batches(data, context=32, batch_size=whole_epoch, seed=3)
    first, second = starts(alone, data, 0), starts(alone, data, 1)
    assert first != second
    assert {start % 32 for epoch in range(8) for start in starts(alone, data, epoch)} != {first[0] % 32}
    other = starts(Batches(data, context=32, batch_size=whole_epoch, seed=4), data, 0)
    assert other != first
    assert first != sorted(first)


def test_the_order_is_fixed_for_good(data: TokenData) -> None:
    """Philox and a stable sort: the same on every machine and NumPy version, or old runs cannot be repeated."""
    served = starts(Batches(data, context=64, batch_size=6, seed=7), data, 0)
    assert served == [2148, 2340, 484, 4836, 1828, 4196]


def test_a_step_may_span_epochs(data: TokenData) -> None:
    batches = Batches(data, context=40, batch_size=7, seed=1)
    while batches.windows_per_epoch % 7 == 0:
        batches = Batches(data, context=batches.context + 1, batch_size=7, seed=1)
    step = batches.windows_per_epoch // 7
    phases = Counter(start % batches.context for start in starts(batches, data, step))
    assert sum(phases.values()) == 7
    assert len(phases) == 2


def test_too_small_data_says_what_is_needed(data: TokenData) -> None:
    tokens = len(data.tokens("train"))
    Batches(data, context=tokens // 2, batch_size=1)
    Batches(data, context=tokens // 5, batch_size=4)
    with pytest.raises(InputError, match=rf"has {tokens} tokens; batch_size 1 and context {tokens} need at least"):
        Batches(data, context=tokens, batch_size=1)
    with pytest.raises(InputError, match=f"need at least {(tokens + 1) * 32}"):
        Batches(data, context=32, batch_size=tokens)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"context": 0, "batch_size": 4}, "context is 0; it must be at least 1"),
        ({"context": 8, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"context": 8, "batch_size": 4, "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments(data: TokenData, arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Batches(data, **arguments)


def test_wrong_steps_and_ranks(data: TokenData) -> None:
    batches = Batches(data, context=16, batch_size=4)
    with pytest.raises(InputError, match="step is -1"):
        batches.batch(-1)
    with pytest.raises(InputError, match="world is 3; it must divide batch_size=4"):
        batches.batch(0, world=3)
    with pytest.raises(InputError, match="rank is 2; it must be between 0 and 1"):
        batches.batch(0, rank=2, world=2)


@settings(max_examples=60, deadline=None)
@given(context=st.integers(1, 400), tokens=st.integers(1, 10_000))
def test_evaluation_windows_are_fixed_even_and_disjoint(data: TokenData, context: int, tokens: int) -> None:
    held_out = np.asarray(data.tokens("validation")).astype(np.int64)
    available = (len(held_out) - 1) // context
    windows = evaluation_windows(data, context=context, tokens=tokens)
    assert windows.dtype == np.int64
    assert windows.shape == (min(max(tokens // context, 1), available), context + 1)
    np.testing.assert_array_equal(windows, evaluation_windows(data, context=context, tokens=tokens))
    cut = np.lib.stride_tricks.sliding_window_view(held_out, context + 1)[::context]
    numbers = [number * available // len(windows) for number in range(len(windows))]
    np.testing.assert_array_equal(windows, cut[numbers])
    gaps = np.diff([*numbers, available])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_evaluation_needs_one_window(data: TokenData) -> None:
    held_out = len(data.tokens("validation"))
    assert evaluation_windows(data, context=held_out - 1, tokens=10**9).shape == (1, held_out)
    with pytest.raises(InputError, match=rf"has {held_out} tokens; one window of context {held_out} needs"):
        evaluation_windows(data, context=held_out, tokens=10**9)
    with pytest.raises(InputError, match="tokens is 0"):
        evaluation_windows(data, context=8, tokens=0)
