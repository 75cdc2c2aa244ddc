"""Tables and the isoFLOP figure of docs/results/depth.md, straight from a study's rows.

    python studies/depth_table.py docs/results/depth-runs.csv --out docs/results/figures

Losses are those of the causal model (`loss`). The noise is the standard deviation between seeds of one cell (same
architecture, budget and size), pooled over all repeated cells; differences are between the best sizes of two
architectures at one budget, each the mean over its seeds, with a 90% interval from that noise (Student's t). The
intervals do not know that the best size was chosen after the fact (among the sizes with the most seeds), nor that all
differences share the same runs of the architecture that they are taken from.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import t as student

from isoflop.laws import exponent, read_runs

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MAIN = ("dense", "mod-c.125", "mod-c.25", "mod-c.5", "mod-c1")
HEADER = (
    "| architecture | FLOPs | d×L | active | forward FLOPs/token | loss by seed | as trained − as sampled "
    "| agreement | computed |"
)
Key = tuple[str, float, str]


def main() -> None:
    """Print the rows, the noise and the differences; draw the isoFLOP curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/figures"))
    parser.add_argument("--against", nargs="+", default=["dense", "mod-c.125"])
    args = parser.parse_args()
    rows = read_runs(args.runs).usable().rows
    cells: dict[Key, list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        cells[row["architecture"], float(row["budget"]), f"{row['d_model']:g}×{row['n_layers']:g}"].append(row)
    losses = {key: np.array([float(row["loss"]) for row in own]) for key, own in cells.items()}
    spare = sum(len(own) - 1 for own in losses.values())
    noise = float(np.sqrt(sum(((own - own.mean()) ** 2).sum() for own in losses.values()) / max(spare, 1)))
    print(f"noise between seeds: {noise:.4f} nats, {spare} degrees of freedom\n")
    print(HEADER)
    print("|---|---|---|---|---|---|---|---|---|")
    for key in sorted(cells, key=lambda key: (key[1], key[0], float(cells[key][0]["params_total"]))):
        own = sorted(cells[key], key=lambda row: float(row["seed"]))
        first = own[0]
        gaps = [float(r["loss_as_trained"]) - float(r["loss"]) for r in own if _known(r["loss_as_trained"])]
        agreement = [float(r["depth_agreement"]) for r in own if _known(r["depth_agreement"])]
        kept = [float(r["kept_share"]) for r in own if _known(r["kept_share"])]
        by_seed = " / ".join(format(float(row["loss"]), ".3f") for row in own)
        print(
            f"| {key[0]} | {exponent(key[1])} | {key[2]} | {float(first['params_active']) / 1e3:.0f}K | "
            f"{float(first['flops']) / float(first['tokens']) / 3e3:.0f}K | "
            f"{by_seed} | {_mean(gaps, '+.4f')} | {_mean(agreement, '.1%')} | {_mean(kept, '.1%')} |"
        )
    best = _best(losses)
    for other in args.against:
        print(f"\ndifference in loss from {other}, best sizes, 90% interval (negative: better than {other})\n")
        for (name, budget), key in sorted(best.items(), key=lambda item: (item[0][1], losses[item[1]].mean())):
            base = best.get((other, budget))
            if base is None or name == other:
                continue
            difference = losses[key].mean() - losses[base].mean()
            error = noise * np.sqrt(1 / len(losses[key]) + 1 / len(losses[base])) * student.ppf(0.95, max(spare, 1))
            print(
                f"  {exponent(budget)}  {name:20s} {key[2]:6s} {difference:+.3f} [{difference - error:+.3f}, "
                f"{difference + error:+.3f}]   {len(losses[key])} and {len(losses[base])} seeds"
            )
    _draw(cells, losses, noise, args.out)


def _known(value: object) -> bool:
    return value is not None and np.isfinite(float(value))  # type: ignore[arg-type]


def _mean(values: list[float], form: str) -> str:
    return format(float(np.mean(values)), form) if values else "–"


def _best(losses: dict[Key, np.ndarray]) -> dict[tuple[str, float], Key]:
    """The best size of each architecture and budget, among the sizes with the most seeds."""
    best: dict[tuple[str, float], Key] = {}
    most = {
        place: max(len(own) for key, own in losses.items() if key[:2] == place) for place in {k[:2] for k in losses}
    }
    for key in losses:
        place = key[:2]
        if len(losses[key]) < most[place]:
            continue
        if place not in best or losses[key].mean() < losses[best[place]].mean():
            best[place] = key
    return best


def _draw(cells: dict[Key, list[dict[str, object]]], losses: dict[Key, np.ndarray], noise: float, out: Path) -> None:
    budgets = sorted({key[1] for key in cells})
    figure, panels = pyplot.subplots(
        1, len(budgets), figsize=(4 * len(budgets), 3.8), layout="constrained", squeeze=False
    )
    for panel, budget in zip(panels[0], budgets, strict=True):
        for colour, name in zip(COLOURS, MAIN, strict=False):
            own = [key for key in cells if key[:2] == (name, budget)]
            own.sort(key=lambda key: float(cells[key][0]["params_total"]))
            cost = [float(cells[key][0]["flops"]) / float(cells[key][0]["tokens"]) / 3 for key in own]
            mean = [losses[key].mean() for key in own]
            error = [noise / np.sqrt(len(losses[key])) for key in own]
            panel.errorbar(cost, mean, error, fmt="o-", color=colour, markersize=4, linewidth=1, capsize=2, label=name)
        panel.set(xscale="log", title=f"{exponent(budget)} training FLOPs", xlabel="forward FLOPs per token")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:.0f}K")
        panel.xaxis.set_minor_formatter(lambda value, _: f"{value / 1e3:.0f}K" if str(value)[0] in "23" else "")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("held-out loss, causal (nats/token)")
    panels[0][0].legend(frameon=False, fontsize=8)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "depth-isoflop.png", dpi=130)


if __name__ == "__main__":
    main()
