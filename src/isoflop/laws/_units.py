"""Numbers that are sound each by itself and cannot be what their column says: other units, above all."""

import numpy as np

from isoflop.errors import InputError
from isoflop.laws.table import RunTable

_HIGHEST = 20.0  # nats per token; a uniform guess among 500 million tokens
_USUAL_LOSS = 8.0  # nats per token; the median of runs that have learnt anything is below
_LOWEST = 0.3  # nats per token; the smallest irreducible loss that was published is 0.47
_APART = 100.0  # flops and 6ND differ by less, whatever is counted beside the matrices
_ODD = 3.0  # times 6ND that flops of large models are doubted from
_SHORT = 1e4  # no run has so few tokens that its parameters are this many times more
_LARGE = 1e6  # parameters and tokens of a model that anybody fits a law to exceed this, or both are below
_TINY = 2000.0  # no model has fewer parameters
_USUAL = 20.0  # tokens per parameter, to tell millions from billions
_UNITS = (("thousands", "K", "1e3"), ("millions", "M", "1e6"), ("billions", "B", "1e9"), ("trillions", "T", "1e12"))


def check_units(table: RunTable, *, target: str) -> None:
    """Raise InputError at the first row that gives away another unit, naming row, column and remedy.

    Looked for are perplexities (loss above 20), tokens or parameters in millions or billions, and flops that are not
    within 100 times of six per parameter and token.
    """
    if target == "loss":
        _check_loss(table)
    sizes = sorted({"params_active", "params_total"} & set(table.columns))
    if not sizes or "tokens" not in table:
        return
    size = sizes[0]
    if len(sizes) == 2 and np.array_equal(table.numeric(sizes[0]), table.numeric(sizes[1])):
        size = min(sizes, key=table.columns.index)  # the other one was derived from it
    params, tokens = table.numeric(size), table.numeric("tokens")
    few = (params > _LARGE) & (tokens < params / _SHORT)
    if np.nanmedian(params) > _LARGE and np.nanmedian(tokens) < _LARGE and not _flops_agree(table, params, tokens):
        few |= tokens < _LARGE
    if few.any():
        raise _scaled(table, "tokens", few, size, _USUAL * params[few] / tokens[few])
    small = (params < _TINY) & (tokens > _LARGE)
    if small.any():
        raise _scaled(table, size, small, "tokens", tokens[small] / _USUAL / params[small])
    if "flops" in table:
        _check_flops(table, size, params, tokens)


def doubts(table: RunTable, *, target: str) -> list[str]:
    """What may be another unit and may be right: tiny models, odd flops, losses lower than any published law allows."""
    if target != "loss":
        return []
    return [*_odd_sizes(table), *_odd_flops(table), *_low_losses(table)]


def _odd_sizes(table: RunTable) -> list[str]:
    for name in ("params_active", "params_total"):
        if name in table and np.nanmax(table.numeric(name)) < _TINY:
            values = table.numeric(name)
            return [
                f"{table.in_file(name)} goes from {np.nanmin(values):g} to {np.nanmax(values):g}, fewer parameters "
                f'than any language model has: another unit? Then use --set "{name}={name}*1e6" (and so for tokens).'
            ]
    return []


def _odd_flops(table: RunTable) -> list[str]:
    size = next((name for name in ("params_active", "params_total") if name in table), None)
    derived = any(note.startswith(("flops is absent", "tokens is absent")) for note in table.notes)
    if size is None or derived or not {"flops", "tokens"} <= set(table.columns):
        return []
    with np.errstate(all="ignore"):
        ratio = float(np.nanmedian(table.numeric("flops") / (6 * table.numeric(size) * table.numeric("tokens"))))
    largest = float(np.nanmedian(table.numeric(size)))
    if largest < _LARGE or not np.isfinite(ratio) or 1 / _ODD < ratio < _ODD:
        return []  # of small models head and attention may cost several times what their matrices do
    return [
        f"{table.in_file('flops')} is {ratio:.3g} times 6 · {size} · tokens (median): not 6ND; are the units right?"
    ]


def _low_losses(table: RunTable) -> list[str]:
    losses = table.numeric("loss")
    low = losses < _LOWEST
    if not low.any():
        return []
    row = int(np.argmax(low))
    return [
        f"{table.labels[row]}: {table.in_file('loss')} is {losses[row]:g} ({int(low.sum())} of {len(table)} rows are "
        f"below {_LOWEST:g}), less than any published law's irreducible loss in nats per token: another unit?"
    ]


def _check_loss(table: RunTable) -> None:
    losses = table.numeric("loss")
    high = losses > _HIGHEST
    if not high.any():
        return
    row = int(np.argmax(high))
    if high.all():
        guess = 'all of them are: if they are perplexities, use --set "loss=log(loss)"'
    elif np.nanmedian(losses) > _USUAL_LOSS:
        guess = (
            f"with a median of {np.nanmedian(losses):.3g} they look like perplexities: then use --set "
            '"loss=log(loss)"; leaving rows out would not mend the others'
        )
    else:
        count = f"{int(high.sum())} of {len(table)} rows are"
        remedy = (
            f'use --set "loss=log(loss)" if they are perplexities, or leave them out with --where "loss<{_HIGHEST:g}"'
        )
        guess = f"{count}: correct them, {remedy}"
    raise InputError(
        f"{table.source} {table.labels[row]}: {table.in_file('loss')} is {losses[row]:g}, which is above {_HIGHEST:g} "
        f"nats per token; {guess}."
    )


def _scaled(table: RunTable, column: str, mask: np.ndarray, other: str, lacking: np.ndarray) -> InputError:
    """The sentence about a column in the unit that is nearest to the factors that it lacks."""
    unit, suffix, factor = min(_UNITS, key=lambda unit: abs(np.log(np.median(lacking) / float(unit[2]))))
    row = int(np.argmax(mask))
    value, beside = table.numeric(column)[row], table.numeric(other)[row]
    return InputError(
        f"{table.source} {table.labels[row]}: {table.in_file(column)} is {value:g} beside {beside:.3g} {other}, which "
        f"looks like {unit} ({int(mask.sum())} of {len(table)} rows); write {value:g}{suffix}, or use --set "
        f'"{column}={column}*{factor}" if all rows are so.'
    )


def _flops_agree(table: RunTable, params: np.ndarray, tokens: np.ndarray) -> bool:
    """Whether the table's own flops (not derived ones) vouch for the units of parameters and tokens."""
    if "flops" not in table or any(note.startswith(("flops is absent", "tokens is absent")) for note in table.notes):
        return False
    ratio = table.numeric("flops") / (6 * params * tokens)
    return bool(np.nanmax(ratio) < _APART and np.nanmin(ratio) > 1 / _APART)


def _check_flops(table: RunTable, size: str, params: np.ndarray, tokens: np.ndarray) -> None:
    if size == "params_total" and "expansion_rate" in table:
        params = params / np.maximum(table.numeric("expansion_rate"), 1)
    if "params_embedding" in table:
        params = params + np.nan_to_num(table.numeric("params_embedding"))
    flops = table.numeric("flops")
    expected = 6 * params * tokens
    with np.errstate(all="ignore"):
        apart = np.abs(np.log(flops / expected)) > np.log(_APART)
    if apart.any():
        row = int(np.argmax(apart))
        raise InputError(
            f"{table.source} {table.labels[row]}: {table.in_file('flops')} is {flops[row]:.3g}, and 6 · parameters · "
            f"tokens is {expected[row]:.3g}, over {_APART:g} times apart ({int(apart.sum())} of {len(table)} rows); "
            f'check the units of the three, or use --set "flops=6*{size}*tokens".'
        )
