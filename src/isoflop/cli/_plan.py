"""How a plan is printed, and the training run that it proposes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from isoflop.cli._common import print_table, si
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.planner import Answer, Plan, PlanRow
    from isoflop.planner.hardware import Expense

_SHOWN = 24
"""Most rows of the table for people."""


_HOURS_OF_A_YEAR = 8766.0


def training(plan: "Plan", spec_out: Path | None) -> dict[str, Any]:
    """The run of the best model: tokens, batch, steps and learning rate by the rules of isoflop.train, and its command.

    With continuous shapes the model is the best near to it that can be built, on the tokens that the budget buys it;
    where there is none, a problem alone.
    """
    from isoflop.train import TrainConfig, resolve

    try:
        built = plan.to_train
    except InputError as error:
        return {"problem": str(error)}
    tokens = int(built.tokens)
    spec = str(spec_out or "spec.yaml")
    command = f"isoflop train --spec {spec} --data DATA --out RUN --tokens {tokens}"
    on_gpu = plan.machine is not None and plan.machine.hardware is not None and plan.machine.hardware.name != "cpu"
    command += " --dtype bfloat16" if on_gpu else ""
    found: dict[str, Any] = {"spec": spec, "tokens": tokens, "command": command}
    try:
        run = resolve(built.spec, TrainConfig(tokens=tokens))
    except InputError as error:
        return {**found, "problem": str(error)}
    return {**found, "batch_tokens": run.batch_tokens, "steps": run.steps, "learning_rate": run.learning_rate}


def print_plan(plan: "Plan", within: float, how: Mapping[str, Any], names: str) -> None:
    """Print warnings, the table, and everything else that a plan says, for people."""
    from isoflop.laws import exponent

    near = plan.near_optimal(within)
    leaders = {row.architecture: row for row in reversed(plan.table)}.values()
    shown = [row for row in plan.table if row in near or row in leaders][:_SHOWN]
    intervals = any(row.loss_interval for row in shown)
    for sentence in plan.warnings:
        typer.echo(f"warning: {sentence}")
    columns = ["architecture", "G", "E", "shape", "active", "total", "tokens", "loss", *(["90%"] if intervals else [])]
    budget = f"{exponent(plan.flops)} FLOPs" + (" of a dense model's time" if plan.timed else "")
    print_table(
        f"{names} · {budget} · convention {plan.convention}",
        columns,
        [_cells(row, "* " if row in near else "  ", intervals) for row in shown],
    )
    counted = "hold embedding and head, as the law's N does" if plan.best.with_embedding else "are non-embedding"
    lines = [
        f"* within {within:g} nats of the best: {len(near)} of {len(plan.table)} rows; shape is layers × d_model, "
        f"parameters {counted}."
    ]
    for name, (low, high) in plan.sizes_within(within).items():
        if high > low:
            lines.append(f"  {name}: from {si(low)} to {si(high)} active parameters, were the law's constants exact.")
    if any(_below(row.params_active_interval) or _below(row.tokens_interval) for row in shown):
        lines.append(
            "second lines of active and tokens: 90% intervals of the best size and its tokens, by the law's draws."
        )
    if plan.models:
        lines.append("models to build (non-embedding parameters, counted exactly), their loss against the best row:")
        lines += [_model(row, plan.best.loss) for row in plan.models]
    for name, cost in plan.constraint_costs.items():
        lines.append(f"{name} costs {cost:.4f} nats.")
    lines += _resources(plan.best)
    if plan.best_for_time is not None and plan.best_for_flops is not None:
        for what, row in (("FLOPs", plan.best_for_flops), ("time", plan.best_for_time)):
            lines.append(
                f"best at equal {what}: {row.architecture}, loss {row.loss:.4f}, {row.slowdown:.2f} times the "
                "time of a model of its FLOPs without experts."
            )
    if plan.against_dense is not None:
        lines.append(f"against dense: {plan.against_dense.message}")
    if plan.allocation is not None:
        first, *rest = plan.allocation.sentences
        lines += [f"experts and attention: {first}", *(f"  {sentence}" for sentence in rest)]
    lines += [f"note: {sentence}" for sentence in plan.notes]
    if "steps" in how:
        lines.append(
            f"training by rule: learning rate {how['learning_rate']:.2g}, {how['steps']:,} steps of "
            f"{how['batch_tokens']:,} tokens."
        )
    if "command" in how:
        hint = "" if " --spec spec.yaml " not in how["command"] else "   (with --spec-out spec.yaml)"
        lines.append(f"train: {how['command']}{hint}")
    if plan.allocation is not None and "spec" in how:
        lines.append(f"count: isoflop count {how['spec']} --convention {plan.allocation.ratio_convention}")
    typer.echo("\n".join(lines))


def print_answer(found: "Answer") -> None:
    """Print what a law of something else than the loss says."""
    from isoflop.laws import exponent

    for sentence in found.warnings:
        typer.echo(f"warning: {sentence}")
    names = [name for name in found.rows[0] if name not in ("low", "high") or found.rows[0]["low"] is not None]
    best = None
    if found.quantity == "leverage":
        best = max(found.rows, key=lambda row: row["leverage"] or 0.0)
    heads = {"expansion_rate": "E", "granularity": "G", "expert_attention_ratio": "r*", "dense_flops": "dense FLOPs"}
    rows = []
    for row in found.rows:
        cells = [f"{row[name]:.4g}" if name != "granularity" else f"{row[name]:g}" for name in names]
        rows.append([("* " if row is best else "  ") + cells[0], *cells[1:]])
    print_table(f"{found.law} · {exponent(found.flops)} FLOPs", [heads.get(name, name) for name in names], rows)
    typer.echo(f"{found.quantity}: {found.meaning} ({found.convention}).")
    typer.echo("\n".join(f"note: {sentence}" for sentence in found.notes))


def _cells(row: "PlanRow", mark: str, intervals: bool) -> list[str]:
    shape = f"{row.n_layers:g}×{row.d_model:g}" if row.model else f"{row.n_layers:.1f}×{row.d_model:.0f}"
    cells = [
        mark + row.architecture,
        str(row.granularity),
        f"{row.expansion_rate:g}",
        shape,
        si(row.params_active) + _below(row.params_active_interval),
        si(row.params_total),
        si(row.tokens) + _below(row.tokens_interval),
        f"{row.loss:.4f}",
    ]
    if intervals:
        cells.append("–" if row.loss_interval is None else "{:.3f}–{:.3f}".format(*row.loss_interval))
    return cells


def _below(interval: tuple[float, float] | None) -> str:
    """An interval as the second line of a cell, unless a limit holds it to one value."""
    ends = [] if interval is None else list(map(si, interval))
    return "\n" + "–".join(ends) if len(set(ends)) > 1 else ""


def _model(row: "PlanRow", best: float) -> str:
    interval = "" if row.loss_interval is None else " (90% {:.3f}–{:.3f})".format(*row.loss_interval)
    experts = f", experts {row.n_experts} × {row.d_expert:.0f}, {row.top_k} a token" if row.n_experts > 1 else ""
    heads = row.spec.attention
    return (
        f"  {row.architecture} {row.n_layers:g}×{row.d_model:g}, {heads.n_heads} heads of {heads.head_dim}, "
        f"d_ff {row.spec.feed_forward.d_ff}{experts}: {si(row.params_active)} of {si(row.params_total)} parameters, "
        f"{si(row.tokens)} tokens, loss {row.loss:.4f}{interval}, {row.loss - best:+.4f}"
    )


def _resources(best: "PlanRow") -> list[str]:
    """What the best row takes: epochs, memory, time of a token, hours, energy, price."""
    found = []
    if best.tokens_effective < best.tokens * (1 - 1e-9):
        seen, worth = si(best.unique_tokens), si(best.tokens_effective)
        found.append(f"tokens: {best.epochs:.2f} epochs of {seen}, worth {worth} fresh ones.")
    if best.memory_bytes is not None:
        found.append(f"memory: {best.memory_bytes / 1e9:.3g} GB a device.")
    if best.decode_ms is not None:
        found.append(f"decoding: {best.decode_ms:.3g} ms a token at least.")
    if best.expense is not None:
        found.append(_spent(best.expense))
    return found


def _spent(expense: "Expense") -> str:
    years = expense.hours / _HOURS_OF_A_YEAR
    clock = f"{expense.hours:,.4g} h" if years < 1 else f"{years:,.3g} years" if years < 1e3 else f"{si(years)} years"
    parts = [f"{si(expense.device_hours, 4)} device-hours, {clock} by the clock"]
    if expense.kwh is not None:
        parts.append(f"{expense.kwh:,.4g} kWh")
    if expense.kg_co2e is not None:
        parts.append(f"{expense.kg_co2e:,.4g} kg CO2e")
    if expense.price is not None:
        parts.append(f"price {expense.price:,.2f}")
    return f"training takes {'; '.join(parts)}."
