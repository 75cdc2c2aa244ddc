"""Sides of a benchmark that must not share a process (another allocator, a peer's imports, a peak of memory).

A `Worker` works when told to and sleeps otherwise. This file loads neither torch nor isoflop until asked for memory.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class Worker:
    """A process that does what it is told: `worker("name", key=value)` calls a function that it serves."""

    def __init__(self, module: str, *, threads: int | None = None, environment: Mapping[str, str] | None = None):
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        surroundings |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=surroundings | dict(environment or {}),
        )

    def __call__(self, function: str, **arguments: Any) -> Any:
        """Return what the served function returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self._process.wait(timeout=20)  # what it has to say about its end comes last
            self._log.seek(0)
            raise RuntimeError(f"{self._module} died in {function}:\n{self._log.read()[-4000:]}")
        answer = json.loads(reply)
        if "error" in answer:
            raise RuntimeError(f"{self._module}, {function}:\n{answer['error']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the process end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """What a worker's module does: answer one call a line until its input ends. Prints go to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            call = json.loads(line)
            try:
                answer = {"result": functions[call["function"]](**call["arguments"])}
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


def peak_rss() -> int:
    """Most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins with its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def warm_rss() -> int:
    """The same after torch has loaded what a first training step loads (an optimiser alone: 70 MiB of modules).

    It is what the memory of a step is counted from.
    """
    import torch
    from torch.nn import functional

    weight = torch.nn.Parameter(torch.randn(64, 64))
    optimizer = torch.optim.AdamW([weight], fused=True)
    x = functional.embedding(torch.arange(64), weight) @ weight
    heads = x.view(1, 64, 4, 16).transpose(1, 2)
    x = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(64, 64)
    functional.cross_entropy(functional.silu(x), torch.arange(64)).backward()
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimizer.step()
    return peak_rss()
