"""A pool of worker processes, each of which carries out one job at a time."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from isoflop.errors import RunError

_TAIL_BYTES = 2000


@dataclass(kw_only=True)
class _Worker:
    process: "subprocess.Popen[str]"
    log: Path
    job: Mapping[str, Any] | None = None

    def death(self) -> str:
        """Why the process died: its signal or exit code, and the end of what it said."""
        code = self.process.wait()
        reason = f"the worker exited with code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            reason = f"the worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        tail = self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
        return reason + (f"\n{tail}" if tail else "")

    def end(self) -> None:
        """Kill the process and let go of what belongs to it; its log stays if it says anything."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        if self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()


class Pool:
    """`workers` processes that live until the pool is closed or this process dies.

    Args:
        workers: number of processes.
        threads: CPU threads of each.
        logs: directory for what the workers write to stderr.
        gpus: number of GPUs; worker i sees GPU i modulo this. 0: workers see what this process sees.
    """

    def __init__(self, workers: int, *, threads: int, logs: Path, gpus: int = 0) -> None:
        self.workers, self.threads, self.logs, self.gpus = workers, threads, logs, gpus
        self._workers: list[_Worker | None] = [None] * workers
        self._answers: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """Workers without a job."""
        return sum(worker is None or worker.job is None for worker in self._workers)

    @property
    def jobs(self) -> list[Mapping[str, Any]]:
        """The jobs that are being carried out."""
        return [worker.job for worker in self._workers if worker is not None and worker.job is not None]

    def start(self, job: Mapping[str, Any]) -> None:
        """Give a job to an idle worker.

        Raises:
            RunError: if there is no idle worker, or a process cannot be started.
        """
        for index in range(self.workers):
            worker = self._workers[index]
            if worker is None or worker.job is None:
                worker = worker or self._spawn(index)
                worker.job = job
                assert worker.process.stdin is not None
                with suppress(BrokenPipeError):  # the process has just died; its reader says so
                    worker.process.stdin.write(json.dumps(job) + "\n")
                    worker.process.stdin.flush()
                return
        raise RunError("all workers are busy.")

    def wait(self, seconds: float) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
        """The next job that ends within this time and its answer; status `killed` if its process died."""
        try:
            index, line = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        worker = self._workers[index]
        if worker is None:
            return None
        job, worker.job = worker.job, None
        if line is not None and job is not None:
            return job, json.loads(line)
        error = worker.death()
        worker.end()
        self._workers[index] = None
        return None if job is None else (job, {"status": "killed", "error": error})

    def close(self) -> None:
        """End all workers at once; a run that is cut short resumes from its checkpoint."""
        for worker in self._workers:
            if worker is not None:
                worker.end()
        self._workers = [None] * self.workers

    def _spawn(self, index: int) -> _Worker:
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(self.threads)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(index % self.gpus)
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"worker-{os.getpid()}-{index}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "isoflop.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        worker = _Worker(process=process, log=path)
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(index, process.stdout), daemon=True).start()
        self._workers[index] = worker
        return worker

    def _read(self, index: int, stdout: IO[str]) -> None:
        try:
            for line in stdout:
                self._answers.put((index, line))
        except ValueError:
            return  # closed
        self._answers.put((index, None))


def _visible_gpu(index: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
