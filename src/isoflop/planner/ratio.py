"""The expert–attention ratio of a plan's models: where the loss is least over it, and models that are moved to it.

A law in N and D was fitted to models of one shape, and at equal FLOPs per token a larger ratio buys parameters that it
would credit. So the loss of a moved model is that of the shape it was moved from, plus what the valley says of the two
ratios, unless the law of the loss reads the ratio itself: then it is asked of the moved model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from isoflop.errors import InputError
from isoflop.laws import BestRatio, Fit, RatioOptimum, best_ratio
from isoflop.planner.allocation import Realised, realise
from isoflop.planner.continuous import CONVENTIONS as BLIND
from isoflop.planner.families import ContinuousFamily, Family, LadderFamily
from isoflop.planner.losses import LossLaw, constants, knows_uncertainty, law_columns, predict
from isoflop.planner.problem import Problem
from isoflop.planner.ratio_curves import lowest, smooth
from isoflop.planner.result import PlanRow
from isoflop.planner.rows import allowed, rows_of
from isoflop.spec import CONVENTIONS, DecoderSpec, count

Ratio = float | Literal["best"]

PUBLISHED: Final = "li-2026"
"""Law of the best ratio where none is given."""

_RATIO: Final = "expert_attention_ratio"
_SAMPLES, _FINE = 7, 241
"""Models between which the columns of other ratios are interpolated, and ratios that are then compared."""

_BUILT, _TRIED = 4, 8
"""Models of each architecture that are built at a ratio, and looked for at most."""

_GPU_MULTIPLE: Final = 64
"""From widths of this multiple on, heads of other sizes than the template's are a last resort."""

_FAR: Final = 100.0
"""Times the largest budget that was measured beyond which the valley's gain is not credited."""

_UNKNOWN_SPAN: Final = (0.2, 5.0)
"""Ratios among which the best is sought where a law comes without runs."""


def reads_ratio(law: LossLaw) -> bool:
    """Whether predictions depend on the expert–attention ratio (a pinned valley of depth 0 is none)."""
    own = constants(law)
    return _RATIO in own.form.columns and own.parameters.get("v", 1.0) != 0


def checked_ratio(
    ratio: Ratio | None, allocation: str | BestRatio | None, laws: Sequence[LossLaw]
) -> tuple[Ratio | None, BestRatio]:
    """What was asked, checked, and the law of the best ratio.

    Raises:
        InputError: if the ratio is no positive number, a law of the best ratio is given beside laws of the loss that
            read the ratio themselves, or the best is asked of one whose runs show no valley.
    """
    if isinstance(ratio, str) and ratio != "best":
        raise InputError(f"ratio is {ratio!r}; it must be a positive number or best.")
    if isinstance(ratio, (int, float)) and not 0 < ratio < np.inf:
        raise InputError(f"ratio is {ratio:g}; it must be positive and finite.")
    if allocation is not None and laws and all(map(reads_ratio, laws)):
        name = constants(laws[0]).name
        raise InputError(f"allocation is given, but law {name} reads the ratio itself; leave allocation out.")
    best = allocation if isinstance(allocation, BestRatio) else best_ratio(allocation or PUBLISHED)
    if ratio == "best" and best.depth is not None and not best.is_visible:
        raise InputError(
            f"ratio is best, but the runs of {best.name} show no valley: its depth may be 0 and any ratio the best; "
            "give a number, or leave ratio out."
        )
    return ratio, best


_TOLD: Final = ("tried", "there", "beyond")


@dataclass(kw_only=True)
class Moved:
    """Rows at a ratio, and by architecture how many were to be there."""

    rows: list[PlanRow]
    """Best first."""
    tried: Counter[str] = field(default_factory=Counter)
    """Models that were looked for."""
    there: Counter[str] = field(default_factory=Counter)
    """Of these, at the ratio."""
    beyond: Counter[str] = field(default_factory=Counter)
    """Of these, at the ratio but beyond the limits."""
    far: dict[str, list[str]] = field(default_factory=dict)
    """Why the others have no integer model there."""
    silent: tuple[str, ...] = ()
    """Architectures whose best ratio nothing says."""


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Moves the models of a plan to a ratio at their FLOPs per token, and knows what that costs."""

    asked: Ratio | None
    """The ratio, or best; None: models stay as they are."""
    best: BestRatio
    """Says r* where the law of the loss does not read the ratio."""
    problem: Problem
    convention: str
    """Of the plan."""
    families: dict[str, Family]
    """By architecture."""
    head_dim: int | None = None
    """Size of heads that was asked for: models then keep it."""
    _optima: dict[str, RatioOptimum] = field(default_factory=dict, repr=False)
    _found: dict[tuple[DecoderSpec, float], Realised | str] = field(default_factory=dict, repr=False)

    @property
    def flops_convention(self) -> str:
        """Convention whose FLOPs per token are held: the plan's, or exact where that sees no attention scores."""
        return "exact" if self.convention in BLIND else self.convention

    def ratio_convention(self, row: PlanRow) -> str:
        """How the ratio of this row's models is counted: as the law that reads it does."""
        if self.reads(row):
            return self.convention
        counted = self.best.convention
        return self.flops_convention if counted is None or counted not in CONVENTIONS else counted

    def reads(self, row: PlanRow) -> bool:
        """Whether the row's loss is from a law that reads the ratio."""
        return reads_ratio(self.families[row.architecture].law)

    def applies(self, row: PlanRow) -> bool:
        """Whether something says the best ratio of such a model: a law of experts says nothing of dense ones."""
        return self.reads(row) or row.n_experts > 1 or self.best.covers_dense()

    def budget(self, row: PlanRow) -> float:
        """Training FLOPs as the law of the best ratio counts them, of a row's model before it was moved."""
        assert row.model is not None
        counted = self.best.flops_convention
        spec = row.model if row.realised is None else row.realised.base
        known = counted if counted in CONVENTIONS else self.flops_convention
        return count(spec, convention=known).training_flops_per_token * row.tokens

    def optimum(self, row: PlanRow) -> RatioOptimum | None:
        """The valley of a row's model; of its architecture's first model that was asked for, where the law of the loss
        reads the ratio. None where nothing says it."""
        if not self.applies(row):
            return None
        if not self.reads(row):
            return self.best.at(self.budget(row), row.sparsity)
        if row.architecture not in self._optima:
            self._optima[row.architecture] = self._searched(row)
        return self._optima[row.architecture]

    def times_beyond(self, row: PlanRow) -> float | None:
        """How many times the largest budget that was measured a row's is, where that is too far to credit a gain."""
        if "flops" not in self.best.range or self.reads(row):
            return None
        times = self.budget(row) / self.best.range["flops"][1]
        return times if times > _FAR else None

    def change(self, row: PlanRow, before: float, after: float) -> tuple[float, tuple[float, float] | None] | None:
        """Nats that moving a row's model from one ratio to another adds by the valley, with the interval.

        None where nothing says them. Far beyond the budgets that were measured what it would save is not credited.
        """
        optimum = self.optimum(row)
        found = None if optimum is None else optimum.change(before, after, self.problem.level)
        if found is None or self.times_beyond(row) is None:
            return found
        nats, interval = found
        return max(0.0, nats), None if interval is None else (max(0.0, interval[0]), max(0.0, interval[1]))

    def realised(self, row: PlanRow, ratio: float) -> Realised:
        """The row's model at a ratio.

        Heads keep the size that was asked for. Where widths are multiples that GPUs like, they keep theirs if such a
        model is near.

        Raises:
            InputError: if no integer model comes near.
        """
        assert row.model is not None
        key = (row.model, ratio)
        if key not in self._found:
            self._found[key] = self._sought(row, row.model, ratio)
        found = self._found[key]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _sought(self, row: PlanRow, base: DecoderSpec, ratio: float) -> Realised | str:
        """The model at a ratio, or why there is none."""
        multiple = row.template.multiple or 1
        refusal = ""
        for keep_heads in [True] if self.head_dim else [True, False] if multiple >= _GPU_MULTIPLE else [False]:
            try:
                return realise(
                    base,
                    ratio=ratio,
                    convention=self.flops_convention,
                    ratio_convention=self.ratio_convention(row),
                    multiple=multiple,
                    keep_heads=keep_heads,
                )
            except InputError as error:
                refusal = str(error)
        return refusal

    def moved(self, rows: Sequence[PlanRow]) -> "Moved":
        """The rows with their models at the asked ratio, best first, and what became of those that cannot be there.

        Of each architecture, the few that the law and the valley expect to be the best are built. Continuous shapes
        stay as they are, and with `best` so do models whose best ratio nothing says.
        """
        result = Moved(rows=list(rows))
        if self.asked is None:
            return result
        result.rows = [row for row in rows if not self._movable(row)]
        for row in sorted((row for row in rows if self._movable(row)), key=self._expected):
            name = row.architecture
            if result.there[name] == _BUILT or result.tried[name] == _TRIED:
                continue
            result.tried[name] += 1
            try:
                moved = self._at(row, self.realised(row, self._target(row)))
            except InputError as error:
                result.far.setdefault(name, []).append(str(error))
                continue
            if moved is None:
                result.beyond[name] += 1
            else:
                result.there[name] += 1
                result.rows.append(moved)
        result.rows.sort(key=lambda row: (row.loss, row.granularity))
        result.silent = tuple(
            dict.fromkeys(row.architecture for row in rows if row.model is not None and not self.applies(row))
        )
        return result

    def sentences(self, *found: "Moved") -> list[str]:
        """What became of models that are not at the ratio, over everything that was moved.

        Raises:
            InputError: if none came to the ratio although some were to.
        """
        tried, there, beyond = (sum((getattr(each, name) for each in found), Counter[str]()) for name in _TOLD)
        far = {name: [said for each in found for said in each.far.get(name, ())] for each in found for name in each.far}
        first = next((said for each in far.values() for said in each), None)
        total = tried.total()
        if total and not there.total():
            if first is not None and not beyond.total():
                raise InputError(first)
            raise InputError(f"ratio is {self.asked}; the models there are beyond the limits; relax one of them.")
        said = []
        silent = dict.fromkeys(name for each in found for name in each.silent)
        if silent:
            kept = (
                "models keep the template's ratio"
                if self.asked == "best"
                else "losses stay those of the template's shapes"
            )
            said.append(f"{self.best.name} is a law of experts and says nothing of {', '.join(silent)}, whose {kept}.")
        absent = [name for name in tried if not there[name]]
        if absent:
            why = next((sentence for name in absent for sentence in far.get(name, ())), None)
            said.append(
                f"No model of {', '.join(absent)} stands at the ratio{' within the limits' if why is None else ''}, so "
                f"that {'it is' if len(absent) == 1 else 'they are'} left out{'.' if why is None else f': {why}'}"
            )
        n_far = sum(len(each) for name, each in far.items() if there[name])
        if n_far:
            why = next(sentence for name, each in far.items() if there[name] for sentence in each)
            said.append(f"{n_far} of {total} models have no integer model at the ratio and are left out: {why}")
        n_beyond = sum(number for name, number in beyond.items() if there[name])
        if n_beyond:
            said.append(f"{n_beyond} of {total} models are beyond the limits at the ratio and are left out.")
        return said

    def _movable(self, row: PlanRow) -> bool:
        return row.model is not None and (self.asked != "best" or self.applies(row))

    def _target(self, row: PlanRow) -> float:
        """The ratio that a row's model is to have."""
        if isinstance(self.asked, (int, float)):
            return self.asked
        optimum = self.optimum(row)
        assert optimum is not None
        return optimum.ratio

    def _expected(self, row: PlanRow) -> float:
        """The loss of a row at the ratio, before any integer model is looked for; without its parameters' part."""
        optimum = None if self.reads(row) else self.optimum(row)
        if optimum is None or row.model is None:
            return row.loss
        before = count(row.model, convention=self.ratio_convention(row)).expert_attention_ratio
        change = self.change(row, before, self._target(row))
        return row.loss + (change[0] if change else 0.0)

    def _ladder(self, row: PlanRow) -> LadderFamily:
        family = self.families[row.architecture]
        return family.built if isinstance(family, ContinuousFamily) else family

    def _at(self, row: PlanRow, realised: Realised) -> PlanRow | None:
        """The row with another model on the same tokens; None where the limits forbid it."""
        reads = self.reads(row)
        family = self._ladder(row) if reads else self._ladder(row).certain()
        columns = family.counted([realised.spec], self.problem)
        columns = self.problem.trained(columns, np.array([float(row.tokens)]))
        if not allowed(family, columns, self.problem)[0]:
            return None
        (there,) = rows_of(family, columns, predict(family.law, columns), self.problem, [realised.spec])
        sizes = row.params_active_interval
        factor = realised.moved["params_active"]
        there = replace(
            there,
            realised=realised,
            params_active_interval=None if sizes is None else (sizes[0] * factor, sizes[1] * factor),
            tokens_interval=row.tokens_interval,
        )
        if reads:
            return replace(there, ratio_nats=there.loss - row.loss)
        before = count(realised.base, convention=realised.ratio_convention).expert_attention_ratio
        change = self.change(row, before, realised.expert_attention_ratio)
        nats, interval = change or (0.0, None)
        ends = row.loss_interval
        if ends is not None:
            low, high = interval or (nats, nats)
            below, above = np.hypot(row.loss - ends[0], nats - low), np.hypot(ends[1] - row.loss, high - nats)
            ends = (float(row.loss + nats - below), float(row.loss + nats + above))
        return replace(there, loss=row.loss + nats, loss_interval=ends, ratio_nats=nats, read=row.read)

    def _searched(self, row: PlanRow) -> RatioOptimum:
        """The valley of a law of the loss that reads the ratio: the loss of models of a row's FLOPs at every ratio.

        r* is sought within the ratios of the law's runs.

        Columns of ratios between those of a few integer models are quadratics in ln r, which evens out that integers
        hit the FLOPs to 1% alone.
        """
        family = self._ladder(row)
        law = family.law
        assert row.model is not None
        own = count(row.model, convention=self.convention).expert_attention_ratio
        low, high = _UNKNOWN_SPAN
        if isinstance(law, Fit):
            ran = law.runs.numeric(_RATIO)
            low, high = float(np.nanmin(ran)), float(np.nanmax(ran))
        span = (low, high)
        asked = [float(self.asked)] if isinstance(self.asked, (int, float)) else []
        low, high = min([low, own, *asked]), max([high, own, *asked])
        specs = [row.model]
        for ratio in np.geomspace(low, high, _SAMPLES):
            try:
                specs.append(self.realised(row, float(ratio)).spec)
            except InputError:
                continue
        columns = self.problem.trained(family.counted(specs, self.problem), np.full(len(specs), float(row.tokens)))
        read = law_columns(law, columns)
        log_ratio = np.log(read[_RATIO])
        at = np.linspace(np.log(low), np.log(high), _FINE)
        degree = min(2, len(np.unique(log_ratio)) - 1)
        columns_at = {name: smooth(log_ratio, read[name], at, degree) for name in constants(law).form.columns}
        columns_at |= {_RATIO: np.exp(at)} | ({"flops": np.full(_FINE, row.flops)} if "flops" in columns_at else {})
        form = constants(law).form
        loss = form.predict(columns_at, constants(law).parameters)
        drawn = np.zeros((0, _FINE))
        if knows_uncertainty(law):
            drawn = form.predict(columns_at, {name: values[:, None] for name, values in law.draws.items()})
        first, last = (int(np.searchsorted(at, value)) for value in np.log(span) + np.array([-1e-9, 1e-9]))
        first = min(first, max(0, last - 3))
        inner = slice(first, max(last, first + 3))  # a parabola takes three points
        loss, drawn = loss - loss[inner].min(), drawn - drawn[:, inner].min(axis=1, keepdims=True)

        def above(log_r: float) -> tuple[float, np.ndarray]:
            place = float(np.clip(np.interp(log_r, at, np.arange(_FINE)), 0, _FINE - 1.000001))
            left, share = int(place), place - int(place)
            nats = (1 - share) * loss[left] + share * loss[left + 1]
            return float(nats), np.asarray((1 - share) * drawn[:, left] + share * drawn[:, left + 1])

        return RatioOptimum(
            ratio=float(np.exp(np.clip(lowest(at[inner], loss[None, inner])[0], *np.log(span)))),
            log_draws=np.clip(lowest(at[inner], drawn[:, inner]), *np.log(span)),
            above=above,
            span=span,
        )
