"""Figures of docs/results/laws.md: public runs and the laws fitted to them.

    python studies/law_figures.py chinchilla.csv routed.csv.gz steplaw-moe.csv --out docs/results/figures

The files are those that the page names.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from isoflop import laws

matplotlib.use("Agg")
from matplotlib import pyplot

INK, COLOURS = "#333333", ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
ROUTERS = ("S-Base", "RL-R", "Hash")


def chinchilla(path: Path, out: Path) -> None:
    """Measured against predicted loss, and residuals against budget, of the 240 points."""
    names = {"params_total": "Model Size", "flops": "Training FLOP"}
    table = laws.matching(laws.read_runs(path, names), "loss<3.44")
    fit = laws.fit(table, bootstrap=400)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    predicted, measured = fit.predict(table), table["loss"]
    size = np.log10(table["params_total"])
    marks = left.scatter(predicted, measured, c=size, cmap="viridis", s=14)
    ends = [measured.min(), measured.max()]
    left.plot(ends, ends, color=INK, linewidth=0.8)
    left.set(xlabel="fitted loss (nats/token)", ylabel="measured loss (nats/token)", title="Chinchilla's 240 points")
    figure.colorbar(marks, ax=left, label="log10 parameters")
    right.axhline(0, color=INK, linewidth=0.8)
    right.scatter(table["flops"], 100 * fit.residuals, c=size, cmap="viridis", s=14)
    right.set(xscale="log", xlabel="training FLOPs", ylabel="measured / fitted − 1 (%)", title="Residuals")
    figure.savefig(out / "laws-chinchilla.png", dpi=130)


def routed(path: Path, out: Path) -> None:
    """Loss against the number of experts for each dense size, with the fitted law, one panel a router."""
    names = {"params_active": "dense_parameter_count", "expansion_rate": "num_experts", "loss": "loss_validation"}
    whole = laws.read_runs(path, names)
    for condition in ("k=1", "seed=42", "routing_frequency=0.5"):
        whole = laws.matching(whole, condition)
    whole = laws.last_of(whole, "hyper_id")
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    for panel, router in zip(panels, ROUTERS, strict=True):
        table = laws.matching(whole, f"router_type={router}|Dense")
        fit = laws.fit(table, "routed", huber_delta=None)
        experts = np.geomspace(1, 512, 60)
        for colour, size in zip(COLOURS, np.unique(table["params_active"]), strict=False):
            own = table["params_active"] == size
            panel.plot(table["expansion_rate"][own], table["loss"][own], "o", color=colour, markersize=4)
            line = fit.predict({"params_active": np.full(60, size), "expansion_rate": experts})
            panel.plot(experts, line, color=colour, linewidth=1, label=f"{size / 1e6:,.0f}M")
        cut_off = 10 ** (-fit.parameters["b"] / fit.parameters["c"])
        panel.set(xscale="log", xlabel="experts", title=f"{router}: no gain from {cut_off / 1e9:,.0f}B on")
    panels[0].set_ylabel("validation loss (nats/token)")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", title="parameters used")
    figure.savefig(out / "laws-routed.png", dpi=130)


def step_law(path: Path, out: Path) -> None:
    """Loss against tokens for each sparsity of the MoE cells, with the law that those cells identify."""
    names = {"params_total": "N", "params_active": "Na", "tokens": "D", "loss": "smooth loss", "share": "Na/N"}
    table = laws.read_runs(path, names)
    table = laws.best_of(table.with_columns({"sparsity": 1 - table["share"]}), ["sparsity", "tokens"])
    pinned = {"a": 0.0, "alpha": 0.1, "d": 0.0, "delta": 0.0, "gamma": 0.1}
    fit = laws.fit(table, "sparsity", pinned=pinned)
    figure, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
    tokens = np.geomspace(2e9, 2e10, 40)
    for colour, sparsity in zip(COLOURS, np.unique(table["sparsity"]), strict=False):
        own = table["sparsity"] == sparsity
        panel.plot(table["tokens"][own], table["loss"][own], "o", color=colour, markersize=5)
        columns = {"params_total": np.full(40, 2.15e9), "tokens": tokens, "sparsity": np.full(40, sparsity)}
        panel.plot(tokens, fit.predict(columns), color=colour, linewidth=1, label=f"{1 - sparsity:.0%} active")
    panel.set(xscale="log", xlabel="tokens", ylabel="loss (nats/token)", title="Step Law, 2.15B parameters in all")
    panel.set_xticks([2e9, 4e9, 8e9, 2e10], ["2B", "4B", "8B", "20B"])
    panel.set_xticks([], minor=True)
    panel.legend(frameon=False)
    figure.savefig(out / "laws-steplaw.png", dpi=130)


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chinchilla", type=Path)
    parser.add_argument("routed", type=Path)
    parser.add_argument("step_law", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/figures"))
    args = parser.parse_args()
    chinchilla(args.chinchilla, args.out)
    routed(args.routed, args.out)
    step_law(args.step_law, args.out)


if __name__ == "__main__":
    main()
