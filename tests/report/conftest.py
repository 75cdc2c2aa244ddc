"""One synthetic study and its report, made once."""

from pathlib import Path

import pytest
from tests.report.synthetic_study import rows, write_fits, write_study, write_verification

from isoflop.report import write_report
from isoflop.report.evidence import Evidence, gather
from isoflop.report.records import StudyRecords


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = rows()
    directory = write_study(tmp_path_factory.mktemp("report") / "synthetic", table)
    write_fits(directory, table)
    write_verification(directory)
    return directory


@pytest.fixture(scope="session")
def evidence(study: Path) -> Evidence:
    return gather(StudyRecords.open(study))


@pytest.fixture(scope="session")
def page(study: Path) -> Path:
    return write_report(study)
