import os
import signal
from pathlib import Path

from isoflop.study.pool import Pool
from isoflop.study.store import StudyStore, claim

JOB = {"kind": "run", "run_id": "r", "spec": {}, "config": {}, "data": "nowhere", "columns": {}}


def test_a_job_that_cannot_be_done_answers_with_its_error_and_the_worker_lives_on(tmp_path: Path) -> None:
    with Pool(1, threads=1, logs=tmp_path / "logs") as pool:
        for _ in range(2):
            pool.start(JOB | {"directory": str(tmp_path / "r")})
            assert pool.idle == 0
            ended = pool.wait(300)
            assert ended is not None
            job, answer = ended
            assert job["run_id"] == "r"
            assert answer["status"] == "failed"
            assert "vocab_size is missing" in answer["error"]
        assert len(list((tmp_path / "logs").iterdir())) == 1  # one process did both


def test_a_run_that_another_process_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.create("name: x")
    with Pool(1, threads=1, logs=tmp_path / "logs") as pool, claim(store.run_directory("r")) as claimed:
        assert claimed
        assert store.is_claimed("r")
        pool.start(JOB | {"directory": str(store.run_directory("r"))})
        ended = pool.wait(300)
        assert ended is not None
        assert ended[1]["status"] == "busy"
    assert not store.is_claimed("r")


def test_a_worker_that_is_killed_is_told_and_replaced(tmp_path: Path) -> None:
    with Pool(1, threads=1, logs=tmp_path / "logs") as pool:
        pool.start(JOB | {"directory": str(tmp_path / "r")})
        assert pool.wait(300) is not None
        worker = pool._workers[0]
        assert worker is not None
        os.kill(worker.process.pid, signal.SIGSTOP)  # it cannot answer before it is killed
        pool.start(JOB | {"directory": str(tmp_path / "r")})
        os.kill(worker.process.pid, signal.SIGKILL)
        ended = pool.wait(300)
        assert ended is not None
        assert ended[1]["status"] == "killed"
        assert "SIGKILL" in ended[1]["error"]
        assert "out of memory" in ended[1]["error"]
        pool.start(JOB | {"directory": str(tmp_path / "r")})
        again = pool.wait(300)
        assert again is not None
        assert again[1]["status"] == "failed"
