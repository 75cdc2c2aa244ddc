"""Where a study stands, read from its files alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from isoflop.errors import InputError
from isoflop.study.store import StudyStore


def study_status(path: str | Path) -> dict[str, Any]:
    """Counts by status, the runs that are being carried out, the failed ones with their error, the time left.

    `runs`, `flops` and `remaining_seconds` hold what is to come as well: extra seeds whose optimum is not known
    yet, and the verification before it is planned. `to_come` is how many runs that is; `counts` leaves them out.

    Args:
        path: the study's directory.

    Raises:
        InputError: if no study has been started there.
    """
    store = StudyStore(path)
    plan = store.read_json("plan.json")
    if plan is None:
        raise InputError(f"{path} holds no study that has been started: it has no plan.json.")
    store.load_tables()
    counts: Counter[str] = Counter()
    running, failed, rows = [], [], []
    left: list[float | None] = []
    for run in plan["runs"]:
        run_id = run["run_id"]
        row = store.row(run_id)
        claimed = row is None and store.is_claimed(run_id)
        if row is None and not claimed:
            row = store.failures_before(run_id)
        state = row["status"] if row is not None else "running" if claimed else "waiting"
        counts[state] += 1
        if row is not None:
            rows.append(row)
        if state in ("failed", "diverged") and row is not None:
            failed.append({**run, "status": state, "error": row.get("error")})
        if claimed:
            line = _last_line(store.run_directory(run_id) / "metrics.jsonl")
            step = line.get("step", 0)
            running.append({**run, "step": step, "loss": line.get("loss")})
            left.append(None if run["seconds"] is None else run["seconds"] * (1 - step / run["steps"]))
        elif state in ("waiting", "failed"):
            left.append(run["seconds"])
    known = [seconds for seconds in left if seconds is not None]
    workers = plan["workers"]
    remaining = max(max(known), sum(known) / workers * len(left) / len(known)) if known else 0.0 if not left else None
    to_come = plan.get("to_come") or {"runs": 0, "flops": 0.0, "seconds": 0.0}
    if remaining is not None:
        remaining += to_come["seconds"] or 0.0
    return {
        "path": str(store.path),
        "runs": len(plan["runs"]) + to_come["runs"],
        "to_come": to_come["runs"],
        "workers": workers,
        "counts": dict(counts),
        "flops": sum(run["flops"] for run in plan["runs"]) + to_come["flops"],
        "flops_done": sum(row.get("flops") or 0.0 for row in rows),
        "running": running,
        "failed": failed,
        "remaining_seconds": remaining,
        "verification": store.read_json("verification.json"),
    }


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics that tells a training loss."""
    try:
        lines = path.read_bytes()[-4096:].splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if "loss" in values:
            return values
    return {}
