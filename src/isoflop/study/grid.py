"""The grid: which runs a study consists of, given the runs that have ended so far."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from isoflop.errors import InputError
from isoflop.laws import exponent
from isoflop.planner import Template, expected_optimum, neighbour, realise, sizes_around
from isoflop.spec import DecoderSpec, count
from isoflop.study.spec import Architecture, StudySpec
from isoflop.train import Resolved, TrainConfig, resolve
from isoflop.train.config import OPERATIONAL

Stage = Literal["grid", "widened", "extra_seed", "verification"]
Row = Mapping[str, Any]
"""A row of a run table."""

EXPLICIT_SPACING = 1.1
"""Spacing of the ladder on which sizes that the user names are looked up."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a study, before it has been carried out."""

    run_id: str
    """Readable, and unique to what is computed: ends in a hash of spec, configuration and data."""
    architecture: str
    """Its architecture's name in the study."""
    budget: float
    """Training FLOPs of its isoFLOP group."""
    seed: int
    """Seed of weights and data order."""
    stage: Stage
    """Why it is run: grid, widened (the minimum sat on the edge), extra_seed, verification."""
    spec: DecoderSpec
    """The model."""
    config: TrainConfig
    """The training configuration, with batch, micro-batch and learning rate filled in."""
    resolved: Resolved
    """Steps, tokens, FLOPs and parameters."""

    @property
    def columns(self) -> dict[str, Any]:
        """What the study adds to the run's record."""
        return {"architecture": self.architecture, "budget": self.budget, "stage": self.stage}

    @property
    def size(self) -> tuple[int, int]:
        """Width and depth: what differs between the models of one architecture."""
        return self.spec.d_model, self.spec.n_layers


class Grid:
    """Turns a study into runs. A pure function of the study, its data and the rows that are there."""

    def __init__(self, study: StudySpec, *, vocab_size: int, fingerprint: str) -> None:
        self.study, self.vocab_size, self.fingerprint = study, vocab_size, fingerprint
        self._planned: dict[tuple[Any, ...], PlannedRun] = {}
        self._sizes: dict[tuple[str, float], list[DecoderSpec]] = {}

    def expand(self, rows: Mapping[str, Row]) -> list[PlannedRun]:
        """Every run but the verification that is known so far.

        The isoFLOP grid; a further size where all sizes of an architecture and budget have ended and the lowest loss
        stands at the edge; extra seeds, at the optimum once it is known.

        Args:
            rows: the rows of the runs that have ended, by run_id.

        Raises:
            InputError: if a budget is too small for one step of one of its models.
        """
        runs: list[PlannedRun] = []
        for architecture in self.study.expanded:
            for budget in architecture.budgets:
                sizes = self._grid_sizes(architecture, budget)
                group = [self._group(architecture, budget, spec, "grid") for spec in sizes]
                settled = self._widen(architecture, budget, group, rows)
                runs += [run for size in group for run in size]
                runs += self._extra_seeds(architecture, budget, group, settled, rows)
        return runs

    def extra_seeds_to_come(self, rows: Mapping[str, Row]) -> list[PlannedRun]:
        """The repeats at optima that are not known yet, as if each optimum stood in the middle of its sizes."""
        extra = self.study.extra_seeds
        if extra is None or extra.sizes != "optimum":
            return []
        runs: list[PlannedRun] = []
        for architecture in self.study.expanded:
            for budget in architecture.budgets:
                group = [
                    self._group(architecture, budget, spec, "grid") for spec in self._grid_sizes(architecture, budget)
                ]
                middle = group[(len(group) - 1) // 2]
                if not self._widen(architecture, budget, group, rows):
                    lowest = {run.run_id: {"status": "done", "loss": 0.0} for run in middle}
                    runs += self._extra_seeds(architecture, budget, [middle], True, lowest)
        return runs

    def warnings(self) -> list[str]:
        """What about the study's numbers cannot turn out as meant, in sentences."""
        study, found = self.study, []
        for budget in study.budgets:
            own = next((a for a in study.expanded if budget in a.budgets), None)
            if own is None or own.params_active.get(budget):
                continue
            sizes = [replace(spec, experts=None, depth_routing=None) for spec in self._grid_sizes(own, budget)]
            smallest, centre = count(sizes[0]), count(sizes[(len(sizes) - 1) // 2])
            ratio = budget / smallest.training_flops_per_token / smallest.params_active
            wanted = study.expected_tokens_per_parameter
            if ratio < wanted:
                enough = centre.training_flops_per_token * wanted * centre.params_active
                found.append(
                    f"budget {exponent(budget)}: the smallest model has {ratio:.2g} tokens per parameter, not "
                    f"{wanted:g}; the optimum will not be inside the sizes; use budgets from {_rounded_up(enough)}."
                )
        for architecture in study.expanded:
            own_specs = self._grid_sizes(architecture, architecture.budgets[0])
            found += [f"{architecture.name}: {sentence}" for sentence in own_specs[0].warnings]
            found += self._uneven_depth(architecture)
        largest = max(study.budgets)
        if study.verification is not None and study.verification.flops <= largest:
            found.append(
                f"verification.flops is {study.verification.flops:g}, not above the largest budget ({largest:g}): its "
                "run tests no extrapolation; give more."
            )
        return found

    def _uneven_depth(self, architecture: Architecture) -> list[str]:
        """That the sizes of a depth-routed architecture do not route the same share of their blocks, if so."""
        if architecture.depth_routing is None:
            return []
        specs = [spec for budget in architecture.budgets for spec in self._grid_sizes(architecture, budget)]
        routed = {spec.n_layers: len(spec.routed_layers) for spec in specs}
        if len({n / layers for layers, n in routed.items()}) < 2:
            return []
        shares = ", ".join(f"{n} of {layers}" for layers, n in sorted(routed.items()))
        return [
            f"{architecture.name}: its sizes route different shares of their blocks ({shares}), so that they are not "
            "one family; choose sizes by params_active, or another every, skip_first or depth."
        ]

    def run(self, architecture: Architecture, budget: float, spec: DecoderSpec, seed: int, stage: Stage) -> PlannedRun:
        """One run, with the rules filled in.

        Raises:
            InputError: if the budget is less than one step.
        """
        key = (architecture.name, budget, spec, seed, stage)
        if key not in self._planned:
            config = self.study.train_config(budget, seed=seed)
            resolved = resolve(spec, config)
            multiplier = self.study.learning_rate_multiplier * architecture.learning_rate_multiplier
            config = replace(
                config,
                learning_rate=float(f"{resolved.learning_rate * multiplier:.6g}"),
                batch_tokens=resolved.batch_tokens,
                micro_batch=resolved.micro_batch,
            )
            self._planned[key] = PlannedRun(
                run_id=_run_id(architecture.name, budget, spec, config, self.fingerprint),
                architecture=architecture.name,
                budget=budget,
                seed=seed,
                stage=stage,
                spec=spec,
                config=config,
                resolved=resolve(spec, config),
            )
        return self._planned[key]

    def template(self, architecture: Architecture) -> Template:
        """The family of models of one architecture."""
        return self.study.model_template(architecture, self.vocab_size)

    def _grid_sizes(self, architecture: Architecture, budget: float) -> list[DecoderSpec]:
        key = (architecture.name, budget)
        if key not in self._sizes:
            try:
                sizes = self._shapes(architecture, budget)
            except InputError as error:
                raise InputError(f"architecture {architecture.name} at budget {exponent(budget)}: {error}") from None
            self._sizes[key] = [self._allocated(architecture, spec) for spec in sizes]
        return self._sizes[key]

    def _shapes(self, architecture: Architecture, budget: float) -> list[DecoderSpec]:
        """The ladder's shapes of an architecture at a budget."""
        study, template = self.study, self.template(architecture)
        explicit = architecture.params_active.get(budget)
        if explicit:
            found = [sizes_around(template, size, 1, EXPLICIT_SPACING)[0] for size in sorted(explicit)]
            return list(dict.fromkeys(found))
        # all architectures of a budget stand on the same shapes, so the target is that of the dense model
        target = expected_optimum(
            budget,
            tokens_per_param=study.expected_tokens_per_parameter,
            template=replace(template, experts=None, depth_routing=None),
        )
        return sizes_around(template, target, architecture.sizes_per_budget, study.size_spacing)

    @staticmethod
    def _allocated(architecture: Architecture, spec: DecoderSpec) -> DecoderSpec:
        """The model with the architecture's expert–attention ratio at the FLOPs per token of this one."""
        if architecture.expert_attention_ratio is None:
            return spec
        try:
            return realise(spec, ratio=architecture.expert_attention_ratio, hold=architecture.hold).spec
        except InputError as error:
            raise InputError(f"{architecture.name} of d_model {spec.d_model}: {error}") from None

    def _group(self, architecture: Architecture, budget: float, spec: DecoderSpec, stage: Stage) -> list[PlannedRun]:
        """The runs of one size: one for each seed."""
        try:
            return [self.run(architecture, budget, spec, seed, stage) for seed in self.study.seeds]
        except InputError as error:
            raise InputError(
                f"budgets: {budget:g} with {architecture.name} of d_model {spec.d_model}: {error}"
            ) from None

    def _widen(
        self, architecture: Architecture, budget: float, group: list[list[PlannedRun]], rows: Mapping[str, Row]
    ) -> bool:
        """Add sizes to `group` while its lowest loss stands at its edge; whether all of it has ended."""
        if len(group) < 2 or architecture.expert_attention_ratio is not None:
            return _settled(group, rows)
        for _ in range(self.study.widening):
            best = _lowest(group, rows)
            if best is None:
                break
            if best not in (0, len(group) - 1):
                break
            step = -1 if best == 0 else 1
            spec = neighbour(self.template(architecture), group[best][0].spec, step, self.study.size_spacing)
            if spec is None or spec in [size[0].spec for size in group]:
                break
            try:
                added = self._group(architecture, budget, spec, "widened")
            except InputError:  # too large: the budget would be less than a step
                break
            group.insert(0 if step < 0 else len(group), added)
        return _settled(group, rows)

    def _extra_seeds(
        self,
        architecture: Architecture,
        budget: float,
        group: list[list[PlannedRun]],
        settled: bool,
        rows: Mapping[str, Row],
    ) -> Iterator[PlannedRun]:
        extra = self.study.extra_seeds
        if extra is None or (extra.budgets is not None and budget not in extra.budgets):
            return
        if extra.architectures is not None and architecture.name not in extra.architectures:
            return
        specs = [size[0].spec for size in group]
        if extra.sizes == "optimum":
            best = _lowest(group, rows) if settled else None
            specs = [] if best is None else [specs[best]]
        for spec in specs:
            for seed in extra.seeds:
                if seed not in self.study.seeds:
                    yield self.run(architecture, budget, spec, seed, "extra_seed")


def _settled(group: Sequence[Sequence[PlannedRun]], rows: Mapping[str, Row]) -> bool:
    return all(run.run_id in rows for size in group for run in size)


def _lowest(group: Sequence[Sequence[PlannedRun]], rows: Mapping[str, Row]) -> int | None:
    """Index of the size with the lowest mean loss; None while a run has not ended, or if none has a loss."""
    if not _settled(group, rows):
        return None
    losses = [_mean_loss(size, rows) for size in group]
    best = min(range(len(losses)), key=losses.__getitem__)
    return best if math.isfinite(losses[best]) else None


def _mean_loss(size: Sequence[PlannedRun], rows: Mapping[str, Row]) -> float:
    losses = [rows[run.run_id].get("loss") for run in size if rows[run.run_id].get("status") == "done"]
    known = [float(loss) for loss in losses if loss is not None]
    return sum(known) / len(known) if known else math.inf


def _run_id(architecture: str, budget: float, spec: DecoderSpec, config: TrainConfig, fingerprint: str) -> str:
    content = {"spec": _essential(spec), "config": _essential(config), "data": fingerprint}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{architecture}-{short(budget)}-d{spec.d_model}-l{spec.n_layers}-s{config.seed}-{digest}"


def short(flops: float) -> str:
    """A budget as it stands in names: 3e12, 5.5e12."""
    return f"{flops:g}".replace("e+", "e")


def _rounded_up(flops: float) -> str:
    """A budget to two digits that is no smaller."""
    unit = 10.0 ** (math.floor(math.log10(flops)) - 1)
    return exponent(math.ceil(flops / unit) * unit)


def _essential(value: Any) -> Any:
    """Fields that decide the outcome and differ from their default, so that a new field keeps old ids valid."""
    if not is_dataclass(value):
        return value
    kept = {}
    for item in fields(value):
        own = getattr(value, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if item.name not in OPERATIONAL and own != default:
            kept[item.name] = _essential(own)
    return kept
