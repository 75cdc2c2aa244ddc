"""`isoflop report`: prints the path, and one sentence for a wrong directory."""

import json
import subprocess
import sys
from pathlib import Path

from tests.report.synthetic_study import rows, write_study


def isoflop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from isoflop.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def small_study(directory: Path) -> Path:
    return write_study(directory, [row for row in rows() if row["budget"] == 1e12][:4], run_files=False)


def test_report_prints_where_it_is(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study")
    done = isoflop("report", str(study), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["report"]) == tmp_path / "out" / "index.html"
    assert Path(document["report"]).exists()
    assert str(tmp_path / "out" / "figures" / "isoflop.png") in document["figures"]
    done = isoflop("report", str(study))
    assert done.stdout.strip() == str(study / "report" / "index.html")


def test_a_wrong_directory_exits_2(tmp_path: Path) -> None:
    done = isoflop("report", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "runs.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_never_imports_torch(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study")
    program = (
        "import sys; from isoflop.report import write_report; write_report(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(study)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
