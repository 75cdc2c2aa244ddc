"""A worker process: takes jobs from stdin, one JSON line each, and answers each with one JSON line on stdout.

It lives for many runs, so that torch is loaded once, and dies as soon as its parent does: stdin then ends.
"""

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from isoflop.errors import InputError, RunError
from isoflop.spec import parse_spec
from isoflop.study.store import claim
from isoflop.train import TrainConfig

ERROR_LINES = 12
"""Lines of a failed run's error that its row keeps."""


def main() -> None:
    """Serve jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not disturb the answers
    jobs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_watch, args=(jobs,), daemon=True).start()
    while True:
        answer = _serve(json.loads(jobs.get()))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _watch(jobs: "SimpleQueue[str]") -> None:
    """Pass lines on; end the process, whatever it is doing, when the parent has gone."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _serve(job: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a job; the answer holds status (done, diverged, busy, failed) and what there is to say."""
    try:
        answer = _trial(job) if job["kind"] == "trial" else _train(job)
    except (InputError, RunError) as error:
        answer = {"status": "failed", "error": str(error)}
    except Exception:
        lines = traceback.format_exc().rstrip().splitlines()
        print("\n".join(lines), file=sys.stderr, flush=True)
        answer = {"status": "failed", "error": "\n".join([lines[-1], *lines[-ERROR_LINES:-1]])}
    return {"run_id": job["run_id"], **answer}


def _train(job: Mapping[str, Any]) -> dict[str, Any]:
    from isoflop.train import train

    directory = Path(job["directory"])
    with claim(directory) as claimed:
        if not claimed:
            return {"status": "busy"}
        record = train(
            parse_spec(job["spec"]),
            TrainConfig(**job["config"]),
            data=job["data"],
            out=directory,
            progress=False,
            extra=job["columns"],
        )
    return {"status": record["status"], "loss": record["loss"], "error": record["error"]}


def _trial(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of one optimiser step: the median over the steps of a short run, the first one left out."""
    from isoflop.train import train

    directory = Path(job["directory"])
    shutil.rmtree(directory, ignore_errors=True)
    try:
        train(parse_spec(job["spec"]), TrainConfig(**job["config"]), data=job["data"], out=directory, progress=False)
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        seconds = [line["wall_seconds"] for line in lines if "wall_seconds" in line]
        steps = sorted(after - before for before, after in pairwise(seconds))
        return {"status": "done", "seconds_per_step": steps[len(steps) // 2]}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
