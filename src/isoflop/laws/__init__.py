"""What a model's loss will be: run table, law forms, published constants, fitting and uncertainty."""

from isoflop.laws.best_ratio import (
    BestRatio,
    RatioOptimum,
    best_ratio,
    best_ratio_of,
    load_best_ratio,
    save_best_ratio,
)
from isoflop.laws.comparison import ComparedLaw, Comparison, compare
from isoflop.laws.conditions import matching
from isoflop.laws.files import load_fit, save_fit
from isoflop.laws.fitting import fit
from isoflop.laws.forms import (
    FORMS,
    Allocation,
    AllocationLoss,
    Chinchilla,
    FineGrained,
    Form,
    Joint,
    Leverage,
    Neutral,
    Parameter,
    Repetition,
    Routed,
    Sparsity,
    Unified,
)
from isoflop.laws.frontier import LawFrontier, MinimaFrontier, cost_between_runs
from isoflop.laws.held_out import Holdout
from isoflop.laws.law import Law
from isoflop.laws.loading import load_form
from isoflop.laws.minima import Minimum, isoflop_minima
from isoflop.laws.multiplier import Multiplier, efficiency_multiplier
from isoflop.laws.numbers import exponent, parse_number
from isoflop.laws.pooling import pooled_depth, shows_valley
from isoflop.laws.posterior import Posterior, posterior
from isoflop.laws.profile import Profile, profile
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.ratio_law import SharedValley, allocation_of, shared_valley
from isoflop.laws.reading import read_runs
from isoflop.laws.reductions import best_of, last_of
from isoflop.laws.repeats import LackOfFit, NoiseFloor, lack_of_fit, noise_floor
from isoflop.laws.result import Fit
from isoflop.laws.shared import SharedFit, fit_shared
from isoflop.laws.table import RunTable, joined
from isoflop.laws.valleys import MOST_DRAWS, Valley, ratio_valleys
from isoflop.laws.writing import write_runs

__all__ = [
    "FORMS",
    "MOST_DRAWS",
    "PUBLISHED",
    "Allocation",
    "AllocationLoss",
    "BestRatio",
    "Chinchilla",
    "ComparedLaw",
    "Comparison",
    "FineGrained",
    "Fit",
    "Form",
    "Holdout",
    "Joint",
    "LackOfFit",
    "Law",
    "LawFrontier",
    "Leverage",
    "MinimaFrontier",
    "Minimum",
    "Multiplier",
    "Neutral",
    "NoiseFloor",
    "Parameter",
    "Posterior",
    "Profile",
    "RatioOptimum",
    "Repetition",
    "Routed",
    "RunTable",
    "SharedFit",
    "SharedValley",
    "Sparsity",
    "Unified",
    "Valley",
    "allocation_of",
    "best_of",
    "best_ratio",
    "best_ratio_of",
    "compare",
    "cost_between_runs",
    "efficiency_multiplier",
    "exponent",
    "fit",
    "fit_shared",
    "isoflop_minima",
    "joined",
    "lack_of_fit",
    "last_of",
    "load_best_ratio",
    "load_fit",
    "load_form",
    "matching",
    "noise_floor",
    "parse_number",
    "pooled_depth",
    "posterior",
    "profile",
    "published",
    "ratio_valleys",
    "read_runs",
    "save_best_ratio",
    "save_fit",
    "shared_valley",
    "shows_valley",
    "write_runs",
]
