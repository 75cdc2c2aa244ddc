"""What a model's loss will be: run table, law forms, published constants, fitting and uncertainty."""

from isoflop.laws.fitting import fit
from isoflop.laws.forms import FORMS, Chinchilla, FineGrained, Form, Parameter
from isoflop.laws.law import Law
from isoflop.laws.published import PUBLISHED, published
from isoflop.laws.reading import read_runs, write_runs
from isoflop.laws.result import Fit, Holdout
from isoflop.laws.table import RunTable

__all__ = [
    "FORMS",
    "PUBLISHED",
    "Chinchilla",
    "FineGrained",
    "Fit",
    "Form",
    "Holdout",
    "Law",
    "Parameter",
    "RunTable",
    "fit",
    "published",
    "read_runs",
    "write_runs",
]
