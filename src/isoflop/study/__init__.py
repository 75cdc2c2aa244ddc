"""Studies: from a YAML file to a grid of runs at equal FLOPs, a run table, laws, a plan and the run that checks it.

A study is a directory. Any number of processes may work on it, be killed and be started again; finished runs are kept.
"""

from isoflop.study.grid import Grid, PlannedRun
from isoflop.study.run import Outcome, run_study
from isoflop.study.spec import ArchitectureSpec, DataSpec, ExtraSeeds, StudySpec, Verification, load_study
from isoflop.study.status import study_status
from isoflop.study.store import StudyStore

__all__ = [
    "ArchitectureSpec",
    "DataSpec",
    "ExtraSeeds",
    "Grid",
    "Outcome",
    "PlannedRun",
    "StudySpec",
    "StudyStore",
    "Verification",
    "load_study",
    "run_study",
    "study_status",
]
