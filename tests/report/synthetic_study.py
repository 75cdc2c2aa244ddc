"""A study directory from a planted law with noise: dense and E=8 with G in 1..16, three budgets, four sizes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.laws import RunTable, fit_shared

BUDGETS = (1e12, 6e12, 3e13)
GRANULARITIES = (1, 2, 4, 8, 16)
EXPANSION = 8
NOISE = 0.004
PLANTED = {"a": 22.0, "alpha": 0.24, "b": 96.0, "beta": 0.29, "g": 9.0, "gamma": 0.6, "c": 0.9}
DENSE_A = 25.0

YAML = """\
name: synthetic
description: Planted law with noise
budgets: [1.0e+12, 6.0e+12, 3.0e+13]
architectures:
  dense: {}
  moe: {expansion_rate: 8, granularity: [1, 2, 4, 8, 16]}
seeds: {6.0e+12: 2}
"""


def planted_loss(params: float, tokens: float, granularity: int, dense: bool) -> float:
    """The planted law; `params` is the total without the router (published form of Krajewski et al. 2024)."""
    p = PLANTED
    a = DENSE_A if dense else p["g"] / granularity ** p["gamma"] + p["a"]
    return float(a / params ** p["alpha"] + p["b"] / tokens ** p["beta"] + p["c"])


def rows(*, noise: float = NOISE, seeds_at_middle: int = 2) -> list[dict[str, Any]]:
    """Every row of the run table, in the standard columns, with one diverged and one failed run at the end."""
    rng = np.random.default_rng(5)
    result = []
    for name, granularity, expansion in [("dense", 1, 1), *((f"moe-e8-g{g}", g, EXPANSION) for g in GRANULARITIES)]:
        for index, budget in enumerate(BUDGETS):
            best = 1.1e5 * (budget / 1e12) ** 0.52
            for rung in (-1.5, -0.5, 0.5, 1.5):
                for seed in range(seeds_at_middle if index == 1 else 1):
                    result.append(_row(name, granularity, expansion, budget, best * 2**rung, seed, noise, rng))
    result.append(
        {**_row("moe-e8-g8", 8, 8, 3e13, 2.4e6, 0, noise, rng), "status": "diverged", "loss": None, "loss_std": None}
    )
    result[-1]["error"] = "loss is NaN at step 131; last good checkpoint: step 100"
    result.append(
        {**_row("moe-e8-g16", 16, 8, 3e13, 2.9e6, 0, noise, rng), "status": "failed", "loss": None, "loss_std": None}
    )
    result[-1]["error"] = "<script>alert('x')</script> & out of memory"
    for number, row in enumerate(result):
        row["run_id"] = f"{row['architecture'].lower()}-{number:03d}"
    return result


def write_study(directory: Path, table: list[dict[str, Any]] | None = None, *, run_files: bool = True) -> Path:
    """Write `study.yaml`, `runs.csv` and the run directories, but no fits.json and verification.json."""
    table = rows() if table is None else table
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.yaml").write_text(YAML, encoding="utf-8")
    with (directory / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    if run_files:
        for row in table:
            _write_run(directory / "runs" / row["run_id"], row)
    return directory


def _row(
    name: str, granularity: int, expansion: int, budget: float, active: float, seed: int, noise: float, rng: Any
) -> dict[str, Any]:
    d_model = round((active / 24) ** (1 / 3)) * 2
    n_experts = granularity * expansion if expansion > 1 else 1
    router = 4 * d_model * n_experts if expansion > 1 else 0
    total = active / 3 + expansion * active * 2 / 3
    flops_per_token = 6 * (active + 3 * router) + 1.5e5
    tokens = budget / flops_per_token
    clean = planted_loss(total, tokens, granularity, expansion == 1)
    loss = clean + noise * rng.standard_normal()
    return {
        "run_id": "",
        "study": "synthetic",
        "architecture": name,
        "budget": budget,
        "params_total": round(total) + router,
        "params_active": round(active) + router,
        "params_router": router,
        "params_embedding": 256 * d_model,
        "tokens": round(tokens),
        "flops": budget,
        "flops_convention": "exact",
        "n_layers": 4,
        "d_model": d_model,
        "granularity": granularity,
        "expansion_rate": expansion,
        "n_experts": n_experts,
        "top_k": granularity if expansion > 1 else 1,
        "sparsity": 0 if expansion == 1 else 1 - 1 / expansion,
        "router": "none" if expansion == 1 else "token_choice",
        "seed": seed,
        "loss": loss,
        "loss_std": 0.002,
        "bits_per_byte": loss / np.log(2),
        "status": "done",
        "steps": 200,
        "batch_tokens": round(tokens / 200),
        "context": 256,
        "vocab_size": 256,
        "learning_rate": 3e-3,
        "epochs": 0.31,
        "wall_seconds": 12.5,
        "tokens_per_second": tokens / 12.5,
        "flops_per_second": budget / 12.5,
        "load_max": "" if expansion == 1 else round(1.3 / n_experts, 5),
        "dropped_share": 0,
        "causal": True,
        "error": "",
        "version": "0.1.0",
    }


def _write_run(directory: Path, row: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    result = dict(row)
    if row["expansion_rate"] > 1:
        rng = np.random.default_rng(row["n_experts"])
        load = rng.dirichlet([40.0] * row["n_experts"], size=row["n_layers"])
        result["expert_load"] = load.tolist()
    (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")
    final = row["loss"] or 3.0
    with (directory / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(10, row["steps"] + 1, 10):
            share = step / row["steps"]
            loss = final + 2.5 * np.exp(-6 * share) + 0.4 * (1 - share)
            line = {"step": step, "tokens": round(row["tokens"] * share), "loss": loss, "learning_rate": 1e-3}
            file.write(json.dumps(line) + "\n")


def write_fits(directory: Path, table: list[dict[str, Any]], *, bootstrap: int = 40) -> dict[str, Any]:
    """Fit the laws as a study does and write fits.json; returns the document."""
    runs = RunTable(table).usable()
    groups = {
        "dense": (runs.where(architecture="dense"), "chinchilla"),
        "moe-e8": (runs.where(runs["expansion_rate"] > 1), "fine-grained"),
    }
    shared = fit_shared(groups, bootstrap=bootstrap)
    laws = [
        {
            "name": name,
            "architectures": ["dense"] if name == "dense" else [f"moe-e8-g{g}" for g in GRANULARITIES],
            "holdout": None,
            **found.to_dict(),
        }
        for name, found in shared.fits.items()
    ]
    document = {"version": "0.1.0", "level": 0.9, "digest": "", "laws": laws, "minima": [], "notes": []}
    (directory / "fits.json").write_text(json.dumps(document), encoding="utf-8")
    return document


def write_verification(directory: Path, *, measured: float | None = 2.118) -> None:
    """Write verification.json of one run, predicted 2.11 [2.095, 2.13]."""
    run = {
        "run_id": "moe-e8-g8-1e14",
        "architecture": "moe-e8-g8",
        "role": "best",
        "seed": 0,
        "flops": 1e14,
        "params_active": 9.1e5,
        "predicted": 2.11,
        "interval": [2.095, 2.13],
        "measured": measured,
        "loss_std": None if measured is None else 0.002,
        "status": "done" if measured is not None else "waiting",
        "error": None,
    }
    plan = {"near_optimal": ["moe-e8-g8 d128×4", "moe-e8-g16 d112×4"]}
    document = {"flops": 1e14, "level": 0.9, "digest": "", "runs": [run], "plan": plan, "notes": []}
    (directory / "verification.json").write_text(json.dumps(document), encoding="utf-8")
