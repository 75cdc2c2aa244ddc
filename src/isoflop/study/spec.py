"""What a study is: a YAML file as frozen dataclasses."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from isoflop.errors import InputError
from isoflop.planner import Template
from isoflop.spec import DepthRoutingSpec, ExpertsSpec
from isoflop.spec._checks import STRICT_FIELDS
from isoflop.spec.io import describe_validation_error, read_fields
from isoflop.study.architectures import NAME, Architecture, ArchitectureSpec, each_of
from isoflop.train import TrainConfig
from isoflop.train.config import BUDGETS

_RESERVED: Final = {*BUDGETS, "seed", "threads"}
PYTHON_STDLIB: Final = "python-stdlib"
"""Name of the embedded corpus: the Python standard library's own source."""


def _check_seeds(field: str, seeds: Sequence[int]) -> None:
    if any(not 0 <= seed < 2**63 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{field} is {list(seeds)}; seeds are whole numbers from 0 to 2^63 - 1, each once.")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The text of a study: a prepared directory, or sources that the study prepares itself."""

    __pydantic_config__ = STRICT_FIELDS

    path: str | None = None
    """A directory that `isoflop prepare` wrote."""
    sources: str | tuple[str, ...] | None = None
    """Files or directories of text, relative to the YAML file or the current directory; or python-stdlib."""
    tokenizer: str = "bytes"
    """bytes, bpe, or a tokenizer file."""
    vocab_size: int | None = None
    """Size of a tokenizer that is trained on the text."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `isoflop.data.prepare`."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.sources is None):
            raise InputError("data: give exactly one of path and sources.")
        if not self.source_list and self.path is None:
            raise InputError("data.sources is empty; give at least one file, directory or python-stdlib.")

    @property
    def source_list(self) -> tuple[str, ...]:
        """The sources, also where only one is given."""
        return (self.sources,) if isinstance(self.sources, str) else tuple(self.sources or ())


@dataclass(frozen=True, kw_only=True)
class TemplateSpec:
    """What every model of the study shares; see `isoflop.planner.Template`."""

    __pydantic_config__ = STRICT_FIELDS

    activation: Literal["swiglu", "gelu", "relu"] = "swiglu"
    """swiglu, gelu or relu."""
    head_dim: int | None = None
    """Size of an attention head; default: by width."""
    depth: float = 1.0
    """Factor on the depth that the aspect rule gives."""
    qk_norm: bool = False
    """RMSNorm on queries and keys."""
    tied_head: bool = False
    """Whether the output head shares the embedding matrix."""
    init_scale: float = 1.0
    """See `isoflop.spec.DecoderSpec`."""


@dataclass(frozen=True, kw_only=True)
class ExtraSeeds:
    """Repeats of some runs with other seeds, to know the noise."""

    __pydantic_config__ = STRICT_FIELDS

    seeds: tuple[int, ...]
    """Seeds beside the study's own."""
    budgets: tuple[float, ...] | None = None
    """At these budgets; default: all."""
    architectures: tuple[str, ...] | None = None
    """Of these architectures; default: all."""
    sizes: Literal["optimum", "all"] = "optimum"
    """optimum: the size with the lowest loss; all: every size."""


@dataclass(frozen=True, kw_only=True)
class Widen:
    """Whether to add sizes where the lowest loss stands at the edge of the size range."""

    __pydantic_config__ = STRICT_FIELDS

    sizes: int = 2
    """At most this many further sizes per architecture and budget; 0: none."""

    def __post_init__(self) -> None:
        if self.sizes < 0:
            raise InputError(f"widen.sizes is {self.sizes}; it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The run that checks the law: the plan's best model at a larger budget."""

    __pydantic_config__ = STRICT_FIELDS

    flops: float
    """Training FLOPs of the run."""
    seeds: tuple[int, ...] = (0,)
    """One run for each."""
    also: tuple[str, ...] = ()
    """Architectures to train at this budget besides the best one, for comparison."""

    def __post_init__(self) -> None:
        if not 0 < self.flops < float("inf"):
            raise InputError(f"verification.flops is {self.flops}; it must be a finite number greater than 0.")
        if not self.seeds:
            raise InputError("verification.seeds is empty; give at least one seed.")
        _check_seeds("verification.seeds", self.seeds)


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Architectures and sizes to compare at equal FLOPs, and the budget that checks the law that comes out."""

    __pydantic_config__ = STRICT_FIELDS

    name: str
    """Name of the study and of its default directory, runs/<name>."""
    description: str = ""
    """A sentence for the report."""
    data: DataSpec
    """The text."""
    context: int
    """Tokens in a training sequence."""
    budgets: tuple[float, ...]
    """Training FLOPs, `exact` convention."""
    architectures: tuple[ArchitectureSpec, ...]
    """What is compared."""
    template: TemplateSpec = field(default_factory=TemplateSpec)
    """What every model shares."""
    granularities: tuple[int, ...] = ()
    """Further G, beside those of the architectures, that the shapes of all models must allow."""
    sizes_per_budget: int = 4
    """Model sizes at each budget, around the expected optimum."""
    size_spacing: float = 2**0.5
    """Ratio of the active parameters of neighbouring sizes."""
    expected_tokens_per_parameter: float = 20.0
    """Where the grid is centred."""
    params_active: Mapping[float, tuple[float, ...]] = field(default_factory=dict)
    """Sizes by budget, instead of the grid: active non-embedding parameters of the dense model."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every run."""
    extra_seeds: ExtraSeeds | None = None
    """Repeats of some runs."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig, and learning_rate_multiplier: a factor on the rule's learning rate."""
    widen: Widen | bool = True
    """Add sizes where the minimum sits on the edge; true: at most two per architecture and budget."""
    verification: Verification | None = None
    """The run that checks the law."""
    workers: int | None = None
    """Worker processes; default: one per core (per GPU where there is one)."""
    threads_per_run: int = 1
    """CPU threads of a worker: several single-thread runs beat one run with several threads."""
    bootstrap: int = 200
    """Resamples behind the laws' intervals."""
    table: str | None = None
    """A run table whose finished rows are not run again, relative to the YAML file."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(f"name is {self.name!r}; it must hold only letters, digits, '.', '_', '+' and '-'.")
        for name in ("budgets", "architectures", "seeds"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give at least one.")
        for name in (
            "context", "sizes_per_budget", "expected_tokens_per_parameter", "workers", "threads_per_run",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be greater than 0.")
        if self.bootstrap < 0 or 0 < self.bootstrap < 20:
            raise InputError(f"bootstrap is {self.bootstrap}; it must be 0 (no intervals) or at least 20.")
        if not 1.1 <= self.size_spacing <= 4:
            raise InputError(f"size_spacing is {self.size_spacing}; it must be between 1.1 and 4.")
        _check_seeds("seeds", self.seeds)
        for budget in self.budgets:
            if not 0 < budget < float("inf"):
                raise InputError(f"budgets holds {budget}; a budget must be a finite number greater than 0.")
        if len(set(self.budgets)) < len(self.budgets):
            raise InputError(f"budgets is {list(self.budgets)}; each may stand there once.")
        self._check_sizes("params_active", self.params_active)
        names = [architecture.name for architecture in self.expanded]
        written = [architecture.name for architecture in self.architectures]
        for name in written:
            if written.count(name) > 1:
                raise InputError(f"architectures holds {name!r} twice; names must differ.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"architectures holds {twice!r} twice; names must differ.")
        if self.extra_seeds is not None:
            _check_seeds("extra_seeds.seeds", self.extra_seeds.seeds)
            self._check_budgets("extra_seeds.budgets", self.extra_seeds.budgets or ())
            self._check_names("extra_seeds.architectures", self.extra_seeds.architectures or ())
        if self.verification is not None:
            self._check_names("verification.also", self.verification.also)
            for architecture in self.expanded:
                if architecture.expert_attention_ratio is not None:
                    raise InputError(
                        f"verification is given, but {architecture.name} has an expert_attention_ratio, which plans do "
                        "not know; leave one of the two out."
                    )
        self.train_config(self.budgets[0], seed=0)

    @property
    def widening(self) -> int:
        """Sizes that may be added per architecture and budget."""
        widen = Widen(sizes=2 if self.widen else 0) if isinstance(self.widen, bool) else self.widen
        return widen.sizes

    @property
    def expanded(self) -> tuple[Architecture, ...]:
        """Every architecture with one granularity, depth capacity and expert–attention ratio each."""
        found = []
        for index, spec in enumerate(self.architectures):
            where = f"architectures.{index}"
            self._check_budgets(f"{where}.budgets", spec.budgets or ())
            self._check_sizes(f"{where}.params_active", spec.params_active)
            if spec.depth is not None and not 0 < spec.depth < float("inf"):
                raise InputError(f"{where}.depth is {spec.depth}; it must be a finite number greater than 0.")
            several = len(spec.ratios) > 1
            for (of_experts, experts), (of_depth, routing), ratio in itertools.product(
                each_of(spec.experts, ExpertsSpec, f"{where}.experts", "granularity", "-g{}"),
                each_of(spec.depth_routing, DepthRoutingSpec, f"{where}.depth_routing", "capacity", "-c{}"),
                spec.ratios,
            ):
                of_ratio = f"-r{ratio:g}".replace("-r0.", "-r.") if several else ""
                found.append(
                    Architecture(
                        name=spec.name + of_experts + of_depth + of_ratio,
                        family=spec.name,
                        experts=experts,
                        depth_routing=routing,
                        budgets=spec.budgets or self.budgets,
                        sizes_per_budget=spec.sizes_per_budget or self.sizes_per_budget,
                        params_active=spec.params_active or self.params_active,
                        depth=spec.depth,
                        learning_rate_multiplier=spec.learning_rate_multiplier,
                        expert_attention_ratio=ratio,
                        hold=tuple(spec.hold),
                    )
                )
        return tuple(found)

    def architecture(self, name: str) -> Architecture:
        """The expanded architecture of this name."""
        return next(architecture for architecture in self.expanded if architecture.name == name)

    def model_template(self, architecture: Architecture, vocab_size: int) -> Template:
        """The family of models of one architecture, on shapes that all architectures of the study share."""
        used = {a.experts.granularity for a in self.expanded if a.experts is not None}
        return Template(
            name=architecture.name,
            vocab_size=vocab_size,
            context=self.context,
            experts=architecture.experts,
            depth_routing=architecture.depth_routing,
            granularities=tuple(sorted({*self.granularities, *used} or {1})),
            **(vars(self.template) | ({} if architecture.depth is None else {"depth": architecture.depth})),
        )

    def train_config(self, flops: float, *, seed: int) -> TrainConfig:
        """The training configuration of a run of this budget, before any rule has filled it in.

        Raises:
            InputError: if `training` names a field that does not exist or holds a value that is not allowed.
        """
        values = {name: value for name, value in self.training.items() if name != "learning_rate_multiplier"}
        allowed = {item.name for item in fields(TrainConfig)} - _RESERVED
        for name in values:
            if name in _RESERVED:
                raise InputError(f"training.{name} cannot be set here; the study decides it.")
            if name not in allowed:
                near = difflib.get_close_matches(name, [*allowed, "learning_rate_multiplier"], n=1)
                hint = f"the nearest is {near[0]}; " if near else ""
                raise InputError(
                    f"training.{name} is not a field; {hint}allowed: learning_rate_multiplier, {_list(allowed)}."
                )
        values |= {"flops": flops, "seed": seed, "threads": self.threads_per_run}
        try:
            return TypeAdapter(TrainConfig).validate_python({"keep_checkpoints": 0, **values})
        except ValidationError as error:
            raise InputError(describe_validation_error(error, "training", TrainConfig)) from None

    @property
    def learning_rate_multiplier(self) -> float:
        """Factor on the learning rate of every run."""
        value = self.training.get("learning_rate_multiplier", 1.0)
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 < value < float("inf"):
            given = self.training["learning_rate_multiplier"]
            raise InputError(f"training.learning_rate_multiplier is {given!r}; it must be a number greater than 0.")
        return value

    def _check_budgets(self, name: str, budgets: Any) -> None:
        for budget in budgets:
            if budget not in self.budgets:
                raise InputError(f"{name} holds {budget:g}; allowed are the study's budgets: {_list(self.budgets)}.")

    def _check_sizes(self, name: str, by_budget: Mapping[float, tuple[float, ...]]) -> None:
        self._check_budgets(name, by_budget)
        for budget, sizes in by_budget.items():
            if not sizes or not all(size > 0 for size in sizes):
                raise InputError(f"{name}.{budget:g} is {list(sizes)}; give at least one size greater than 0.")

    def _check_names(self, name: str, wanted: tuple[str, ...]) -> None:
        known = [architecture.name for architecture in self.expanded]
        for architecture in wanted:
            if architecture not in known:
                raise InputError(f"{name} holds {architecture!r}; allowed: {', '.join(known)}.")


def load_study(path: str | Path) -> StudySpec:
    """Read a study from a YAML file.

    Raises:
        InputError: if the file is missing or not YAML, names a field twice, or a field or value in it does not exist.
    """
    return parse_study(read_fields(path, what="study file", kind=StudySpec), source=str(path))


def parse_study(values: Mapping[str, Any], *, source: str = "study") -> StudySpec:
    """Build a StudySpec from nested mappings (numbers may be strings such as "1e12").

    Raises:
        InputError: naming the field, the value and what is allowed.
    """
    try:
        study = TypeAdapter(StudySpec).validate_python(dict(values))
        study.learning_rate_multiplier  # noqa: B018 (checks the value)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, source, StudySpec)) from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return study


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values))
