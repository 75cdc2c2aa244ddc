import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.study.tiny_study import BUDGETS, losses, results, start, write_study

from isoflop.errors import InputError
from isoflop.laws import read_runs
from isoflop.study import Outcome, run_study, study_status


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Iterator[None]:
    """The report costs seconds and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.report.write_report", lambda path: path / "report" / "index.html")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A study that ran undisturbed, with its verification."""
    directory = tmp_path_factory.mktemp("finished")
    path = write_study(directory, verification={"flops": 1.2e9, "also": ["dense"]})
    return run_study(path, directory / "out", progress=False)


def test_every_run_is_a_row_and_a_directory(finished: Outcome) -> None:
    assert finished.complete
    table = read_runs(finished.path / "runs.csv")
    assert len(table) == 27 + len(finished.verification["runs"])  # type: ignore[index]
    assert {row["run_id"] for row in table.rows} == set(results(finished.path))
    assert losses(finished.path) == {row["run_id"]: row["loss"] for row in table.rows}
    assert {row["status"] for row in table.rows} == {"done"}
    assert {row["stage"] for row in table.rows} == {"grid", "verification"}
    assert {row["study"] for row in table.rows} == {"tiny"}
    assert {row["architecture"] for row in table.rows} == {"dense", "moe-g1", "moe-g2"}
    parquet = read_runs(finished.path / "runs.parquet")
    assert [row["loss"] for row in parquet.rows] == [row["loss"] for row in table.rows]


def test_laws_plan_and_verification_are_written(finished: Outcome) -> None:
    fits = json.loads((finished.path / "fits.json").read_text())
    assert {law["name"]: law["law"] for law in fits["laws"]} == {"dense": "chinchilla", "moe": "fine-grained"}
    assert {(m["architecture"], m["budget"]) for m in fits["minima"]} == {
        (name, budget) for name in ("dense", "moe-g1", "moe-g2") for budget in BUDGETS
    }
    document = json.loads((finished.path / "verification.json").read_text())
    best = document["runs"][0]
    assert best["role"] == "best"
    assert best["predicted"] == min(row["loss"] for row in document["plan"]["table"])
    assert "dense" in {run["architecture"] for run in document["runs"]}
    for run in document["runs"]:
        assert run["measured"] == results(finished.path)[run["run_id"]]["loss"]
        low, high = run["interval"]
        assert run["inside"] == (low <= run["measured"] <= high)
        assert (run["distance"] == 0) == run["inside"]
        assert list((finished.path / "runs" / run["run_id"] / "checkpoints").iterdir())


def test_starting_again_repeats_nothing(finished: Outcome, tmp_path: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.path.glob("runs/*/*")}
    prediction = json.loads((finished.path / "verification.json").read_text())
    again = run_study(finished.path.parent / "tiny.yaml", finished.path, progress=False)
    assert again.complete
    assert {path: path.stat().st_mtime_ns for path in finished.path.glob("runs/*/*")} == times
    assert json.loads((finished.path / "verification.json").read_text()) == prediction


def test_resumes_from_a_committed_table_alone(finished: Outcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = finished.path.parent / "tiny.yaml"
    outcome = run_study(path, out, table=finished.path / "runs.csv", progress=False)
    assert outcome.complete
    assert not list((out / "runs").iterdir())
    assert read_runs(out / "runs.csv").rows == read_runs(finished.path / "runs.csv").rows
    assert outcome.verification == finished.verification
    assert run_study(path, out, progress=False).complete  # the rows were kept
    assert not list((out / "runs").iterdir())


def test_table_rows_that_are_missing_are_run(finished: Outcome, tmp_path: Path) -> None:
    lines = (finished.path / "runs.csv").read_text().splitlines(keepends=True)
    dropped = lines.pop(1).split(",")[0]
    (tmp_path / "some.csv").write_text("".join(lines))
    outcome = run_study(
        finished.path.parent / "tiny.yaml", tmp_path / "out", table=tmp_path / "some.csv", progress=False
    )
    assert outcome.complete
    assert losses(tmp_path / "out") == {dropped: losses(finished.path)[dropped]}


def test_killed_study_resumes_without_losing_or_repeating_a_run(finished: Outcome, tmp_path: Path) -> None:
    path = write_study(tmp_path, budgets=BUDGETS[:2])
    out = tmp_path / "out"
    shutil.copytree(finished.path / "timing", out / "timing")
    with start(path, out) as process:
        try:
            wait_until(lambda: len(results(out)) >= 2 or process.poll() is not None)
            assert workers_of(out)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not workers_of(out))
    kept = {run_id: (out / "runs" / run_id / "result.json").stat().st_mtime_ns for run_id in results(out)}
    assert 2 <= len(kept) < 9
    outcome = run_study(path, out, only_budgets=BUDGETS[:1], progress=False)
    assert not outcome.complete
    for run_id, changed in kept.items():
        assert (out / "runs" / run_id / "result.json").stat().st_mtime_ns == changed
    assert losses(out).items() <= losses(finished.path).items()  # bit for bit those of the undisturbed study
    assert len(losses(out)) == 9
    assert {row["budget"] for row in outcome.rows} == {BUDGETS[0]}


def test_two_processes_share_a_study(finished: Outcome, tmp_path: Path) -> None:
    path = write_study(tmp_path, budgets=BUDGETS[:1])
    out = tmp_path / "out"
    shutil.copytree(finished.path / "timing", out / "timing")
    both = [start(path, out, "--json") for _ in range(2)]
    documents = []
    for process in both:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        documents.append((json.loads(stdout), stderr))
    assert losses(out).items() <= losses(finished.path).items()
    for document, _ in documents:
        assert document["complete"]
        assert {row["run_id"] for row in document["runs"]} == set(losses(out))
    lines = "".join(stderr for _, stderr in documents).splitlines()
    carried_out = [line for line in lines if line.startswith("[") and line.rstrip().endswith(" s")]
    assert len(carried_out) == 9  # each by one of the two
    assert len(read_runs(out / "runs.csv")) == 9


def test_a_failed_run_is_a_row_with_its_error_and_is_tried_again(finished: Outcome, tmp_path: Path) -> None:
    path = write_study(tmp_path, architectures=[{"name": "dense"}], granularities=[1, 2], budgets=BUDGETS[:1])
    out = tmp_path / "out"
    shutil.copytree(finished.path / "timing", out / "timing")
    first = finished.runs[0].run_id
    (out / "runs").mkdir(parents=True)
    (out / "runs" / first).mkdir()
    (out / "runs" / first / "run.json").write_text('{"spec": "of something else"}')
    outcome = run_study(path, out, progress=False)
    assert outcome.complete
    rows = {row["run_id"]: row for row in read_runs(out / "runs.csv").rows}
    assert len(rows) == 3
    assert rows[first]["status"] == "failed"
    assert "holds a run.json that no run of this version wrote" in rows[first]["error"]
    assert rows[first]["architecture"] == "dense"
    status = study_status(out)
    assert status["counts"] == {"failed": 1, "done": 2}
    assert "no run of this version wrote" in status["failed"][0]["error"]
    (out / "runs" / first / "run.json").unlink()
    run_study(path, out, progress=False)
    assert study_status(out)["counts"] == {"done": 3}
    assert {row["status"] for row in read_runs(out / "runs.csv").rows} == {"done"}


def test_dry_run_then_deadline(tmp_path: Path) -> None:
    path = write_study(tmp_path, architectures=[{"name": "dense"}])
    out = tmp_path / "out"
    outcome = run_study(path, out, dry_run=True, progress=False)
    assert len(outcome.runs) == 9
    assert all(seconds is not None and seconds > 0 for seconds in outcome.seconds.values())
    assert outcome.remaining_seconds == pytest.approx(sum(s for s in outcome.seconds.values() if s), rel=1e-6)
    assert not list((out / "runs").iterdir())
    assert not list((out / "timing").glob("*-*"))
    assert study_status(out)["counts"] == {"waiting": 9}

    outcome = run_study(path, out, max_hours=1e-9, progress=False)
    assert not outcome.complete
    assert not list((out / "runs").iterdir())

    with pytest.raises(InputError, match="only_budgets holds 1e"):
        run_study(path, out, only_budgets=[1e8])
    with pytest.raises(InputError, match="max_hours is 0"):
        run_study(path, out, max_hours=0)


def test_mistakes_in_the_data_are_named(tmp_path: Path) -> None:
    path = write_study(tmp_path, data={"sources": ["none.txt"]})
    with pytest.raises(InputError, match=r"none\.txt"):
        run_study(path, tmp_path / "out", progress=False)
    path = write_study(tmp_path, data={"sources": ["text.txt"], "options": {"seeds": 1}})
    with pytest.raises(InputError, match=r"data\.options\.seeds is not an option; allowed: document_bytes"):
        run_study(path, tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="holds no study"):
        study_status(tmp_path / "elsewhere")


def wait_until(condition: object, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(out: Path) -> list[str]:
    """Processes that have a file of this study open (their log)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(out) in os.readlink(process / "fd" / "2") and "worker" in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_changed_study_loses_no_finished_row(finished: Outcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished.path / "runs.csv", out)  # a table alone, without the run directories
    before = {row["run_id"]: row for row in read_runs(out / "runs.csv").rows}
    fewer = write_study(tmp_path, budgets=BUDGETS[:2])

    run_study(finished.path.parent / "tiny.yaml", out, dry_run=True, progress=False)
    files = {path: path.read_bytes() for path in out.glob("*.*")}
    run_study(fewer, out, dry_run=True, progress=False)
    assert {path: path.read_bytes() for path in out.glob("*.*")} == files  # a dry run changes nothing that stands

    outcome = run_study(fewer, out, progress=False)
    assert not list((out / "runs").iterdir())  # every row counted as a finished run
    after = {row["run_id"]: row for row in read_runs(out / "runs.csv").rows}
    assert after.keys() == before.keys()
    planned = {row["run_id"] for row in outcome.rows}
    assert {row["stage"] for run_id, row in after.items() if run_id not in planned} == {"unplanned"}
    assert {run_id: row["loss"] for run_id, row in after.items()} == {i: row["loss"] for i, row in before.items()}

    restored = run_study(finished.path.parent / "tiny.yaml", out, progress=False)
    assert restored.complete
    assert {row["run_id"]: row["stage"] for row in read_runs(out / "runs.csv").rows} == {
        run_id: row["stage"] for run_id, row in before.items()
    }


def test_too_few_rows_for_intervals_still_give_a_law_or_say_why(tmp_path: Path) -> None:
    path = write_study(tmp_path, architectures=[{"name": "dense"}], budgets=BUDGETS[:2], bootstrap=50)
    outcome = run_study(path, tmp_path / "out", progress=False)
    assert outcome.complete
    assert outcome.fits is not None
    assert outcome.fits["laws"] or any("no law for dense" in note for note in outcome.notes)


def test_a_repeat_with_another_seed_stays_in_the_laws(finished: Outcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lines = (finished.path / "runs.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    repeat = next(row for row in rows if row["stage"] == "grid" and row["architecture"] == "moe-g2") | {"seed": "7"}
    other = repeat | {"run_id": "other-rate", "learning_rate": "0.5"}
    added = [repeat | {"run_id": "repeat"}, other]
    text = "\n".join([*lines, *(",".join(row[name] for name in header) for row in added)]) + "\n"
    (out / "runs.csv").write_text(text)
    outcome = run_study(finished.path.parent / "tiny.yaml", out, progress=False)
    stages = {row["run_id"]: row["stage"] for row in read_runs(out / "runs.csv").rows}
    assert (stages["repeat"], stages["other-rate"]) == ("extra_seed", "unplanned")
    moe = next(law for law in outcome.fits["laws"] if law["name"] == "moe")  # type: ignore[index]
    assert moe["n_rows"] == 18 + 1
