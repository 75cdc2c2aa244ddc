"""Tables and figure of docs/results/allocation.md, straight from a study's rows.

    python studies/allocation_table.py docs/results/allocation-runs.csv --out docs/results/figures

Groups are the runs of one architecture (without its ratio) at one budget: their models have equal FLOPs per token and
equal tokens. Valleys are those of `isoflop valleys`: a parabola in ln r for each group, and one depth with
r* = A (1−S)^p C^B for all groups that hold nothing but FLOPs. The slice with total parameters held stands by itself,
beside the same budget's runs of its architecture without.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from isoflop.laws import RunTable, SharedValley, Valley, exponent, ratio_valleys, read_runs, shared_valley

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"e2": "#D55E00", "e8": "#0072B2", "e32": "#009E73", "e8-held": "#56B4E9"}
LEVEL = (0.05, 0.95)
AT = (1e12, 0.875)


def main() -> None:
    """Print the rows, the valleys and what they share; draw the figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="directory of the figure; default: none is drawn")
    args = parser.parse_args()
    table = sliced(read_runs(args.runs).usable())
    valleys = ratio_valleys(table, by=("slice", "budget"))
    print_rows(table)
    print_valleys(valleys)
    print_seeds(table, valleys)
    free = [valley for valley in valleys if valley.group["slice"] != "e8-held"]
    held = [valley for valley in valleys if valley.group["slice"] == "e8-held"]
    beside = [v for v in free if v.group["slice"] == "e8" and v.group["budget"] in {h.group["budget"] for h in held}]
    found = shared_valley(free)
    print_shared("all groups at equal FLOPs per token", found)
    for name, own in (("total parameters held", held), ("the same budget, e8, nothing held", beside)):
        if own:
            print_shared(name, shared_valley(own))
    for name in ("e2", "e8", "e32"):
        own = [valley for valley in free if valley.group["slice"] == name]
        if own:
            print_shared(f"{name} alone", shared_valley(own))
    if args.out is not None:
        draw(table, valleys, found, args.out)


def sliced(table: RunTable) -> RunTable:
    """The table with `slice`, the architecture without its ratio."""
    return table.with_columns({"slice": np.array([str(row["architecture"]).split("-r")[0] for row in table.rows])})


def print_rows(table: RunTable) -> None:
    """Every ratio of every group, its losses by seed."""
    print("| group | r | d×L | heads of | d_expert | active | total | S | loss by seed |")
    print("|---|---|---|---|---|---|---|---|---|")
    cells: dict[tuple[float, str, str], list[dict[str, object]]] = {}
    for row in table.rows:
        cells.setdefault((float(row["budget"]), str(row["slice"]), str(row["architecture"])), []).append(row)
    for key in sorted(cells, key=lambda key: (key[0], key[1], float(cells[key][0]["expert_attention_ratio"]))):
        own = sorted(cells[key], key=lambda row: float(row["seed"]))
        first = {name: value for name, value in own[0].items()}
        losses = " / ".join(f"{float(row['loss']):.3f}" for row in own)
        print(
            f"| {key[1]}, {exponent(key[0])} | {float(first['expert_attention_ratio']):.2f} "
            f"| {first['d_model']}×{first['n_layers']} | {first['n_heads']} | {first['d_expert']} "
            f"| {float(first['params_active']) / 1e3:.0f}K | {float(first['params_total']) / 1e3:.0f}K "
            f"| {float(first['sparsity']):.1%} | {losses} |"
        )
    print()


def print_valleys(valleys: list[Valley]) -> None:
    """One parabola a group."""
    print("| group | runs | r* | v, nats per squared ln r | status |")
    print("|---|---|---|---|---|")
    for valley in sorted(valleys, key=lambda v: (v.group["budget"], v.group["slice"])):
        star = "–" if valley.depth is None else f"{valley.ratio:.2f}" + ends(valley.ratio_interval)
        depth = "–" if valley.curvature is None else f"{valley.curvature:+.4f}" + ends(valley.depth_interval, "+.4f")
        status = {"inside": "inside", "edge": "at an edge", "not_convex": "a hill"}.get(valley.status, valley.status)
        print(
            f"| {valley.group['slice']}, {exponent(float(valley.group['budget']))} | {valley.n_rows} | {star} "
            f"| {depth} | {status} |"
        )
    print()


@dataclass(frozen=True)
class Scatter:
    """Squares of runs about the means of their cells (a model at a budget, over seeds), and about their parabolas."""

    cells: int
    """Cells of several seeds."""
    seeds: float
    """Sum of squares about the means of cells."""
    freedom: int
    """Its degrees of freedom: runs beyond one a cell."""
    shape: float
    """Sum of squares of the means about the parabolas, each weighed by its runs."""
    shape_freedom: int
    """Cells beyond three a parabola."""

    @property
    def noise(self) -> float:
        """Standard deviation between seeds."""
        return float(np.sqrt(self.seeds / self.freedom))

    def interval(self) -> tuple[float, float]:
        """Of the standard deviation between seeds, by chi-square."""
        from scipy.special import chdtri

        low, high = (float(np.sqrt(self.seeds / chdtri(self.freedom, tail))) for tail in LEVEL)
        return low, high

    @property
    def by_chance(self) -> float:
        """Probability of means this far from the parabolas if seeds are all the noise (F test of lack of fit)."""
        from scipy.special import fdtrc

        ratio = self.shape / self.shape_freedom / (self.seeds / self.freedom)
        return float(fdtrc(self.shape_freedom, self.freedom, ratio))


def scatter(table: RunTable, valleys: list[Valley], budget: float | None = None) -> Scatter:
    """Seeds against shape, over the groups whose cells all have several seeds; of one budget, or of all."""
    n_cells, freedom, spare = 0, 0, 0
    seeds, shape = 0.0, 0.0
    for valley in valleys:
        if budget is not None and valley.group["budget"] != budget:
            continue
        cells: dict[str, list[float]] = {}
        for row in table.rows:
            if all(row[name] == value for name, value in valley.group.items()):
                cells.setdefault(str(row["architecture"]), []).append(float(row["loss"]))
        if min(map(len, cells.values())) < 2:
            continue
        within = sum(float(np.sum((np.array(own) - np.mean(own)) ** 2)) for own in cells.values())
        n_cells += len(cells)
        freedom += sum(len(own) - 1 for own in cells.values())
        seeds += within
        shape += valley.squares - within
        spare += len(cells) - 3
    return Scatter(n_cells, seeds, freedom, shape, spare)


def print_seeds(table: RunTable, valleys: list[Valley]) -> None:
    """The noise between seeds, pooled over the cells that have several, and whether the parabolas miss by more."""
    budgets = sorted({float(valley.group["budget"]) for valley in valleys})
    for name, budget in [("all budgets", None), *((exponent(each), each) for each in budgets)]:
        found = scatter(table, valleys, budget)
        if found.freedom:
            print(
                f"noise between seeds, {name}: {found.noise:.4f}{ends(found.interval(), '.4f')} over {found.cells} "
                f"cells; means about the parabolas {np.sqrt(found.shape / found.shape_freedom):.4f} a run, "
                f"p = {found.by_chance:.2g}"
            )
    print()


def ends(interval: tuple[float, float] | None, form: str = ".2f") -> str:
    """` [low, high]`, or nothing known."""
    return " [any]" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def print_shared(name: str, found: SharedValley) -> None:
    """One depth, what being wrong costs, and the law."""
    low, high = np.quantile(found.depth_draws, LEVEL)
    twice = np.log(2) ** 2
    misfit = "not testable" if found.misfit is None or np.isnan(found.misfit) else f"p = {found.misfit:.2g}"
    print(
        f"{name}: v = {found.depth:+.4f} [{low:+.4f}, {high:+.4f}]; half or twice r* costs {found.depth * twice:+.4f} "
        f"[{low * twice:+.4f}, {high * twice:+.4f}] nats; noise {found.noise:.4f}; misfit {misfit}"
    )
    if found.law is None:
        print("  a hill: no r*")
        return
    shares = len(found.used) / len(found.depth_draws)
    columns = {"flops": np.array([AT[0]]), "sparsity": np.array([AT[1]])}
    form, parameters = found.law.form, found.law.parameters
    drawn = form.predict(columns, {key: values[:, None] for key, values in found.law.draws.items()})[:, 0]
    star = form.predict(columns, parameters)[0]
    low, high = np.quantile(drawn, LEVEL)
    band = np.sqrt(found.noise / found.depth)
    said = [
        f"r* at {exponent(AT[0])} and S {AT[1]:.1%}: {star:.2f} [{low:.2f}, {high:.2f}] "
        f"({shares:.1%} of draws have one)"
    ]
    for key in ("p", "B"):
        if key not in found.law.pinned:
            low, high = np.quantile(found.law.draws[key], LEVEL)
            said.append(f"{key} = {parameters[key]:+.3f} [{low:+.3f}, {high:+.3f}]")
    said.append(f"within the noise of one run: r*/{np.exp(band):.1f} to r*·{np.exp(band):.1f}")
    print("  " + "; ".join(said))


def draw(table: RunTable, valleys: list[Valley], found: SharedValley, out: Path) -> None:
    """Loss against r, a panel for each budget, with each group's parabola and the shared one."""
    budgets = sorted({float(valley.group["budget"]) for valley in valleys})
    figure, axes = pyplot.subplots(1, len(budgets), figsize=(4.2 * len(budgets), 3.9), squeeze=False)
    grid = np.geomspace(0.22, 4.5, 100)
    for axis, budget in zip(axes[0], budgets, strict=True):
        for valley in valleys:
            if float(valley.group["budget"]) != budget:
                continue
            name = str(valley.group["slice"])
            own = [row for row in table.rows if row["slice"] == name and float(row["budget"]) == budget]
            ratios, losses = (np.array([float(row[key]) for row in own]) for key in ("expert_attention_ratio", "loss"))
            held = name == "e8-held"
            axis.plot(
                ratios,
                losses,
                "o",
                color=COLOURS[name],
                markersize=4,
                markerfacecolor="none" if held else COLOURS[name],
                label=f"{name.removesuffix('-held')}{', total held' if held else f', S {valley.sparsity:.0%}'}",
            )
            if valley.curvature is not None:
                x = np.log(ratios)
                fitted = np.polyval(np.polyfit(x, losses, 2), np.log(grid))
                axis.plot(grid, fitted, color=COLOURS[name], linewidth=1, linestyle=":" if held else "-", alpha=0.7)
            if found.law is not None and not held:
                columns = {"flops": np.array([valley.flops]), "sparsity": np.array([valley.sparsity])}
                star = found.law.form.predict(columns, found.law.parameters)[0]
                base = np.mean(losses - found.depth * np.log(ratios / star) ** 2)
                axis.plot(grid, base + found.depth * np.log(grid / star) ** 2, "--", color=COLOURS[name], linewidth=1)
                axis.plot(star, base, "*", color=COLOURS[name], markersize=9, markeredgecolor="white")
        if axis is axes[0][-1]:
            axis.plot([], [], "-", color="grey", linewidth=1, label="a group's parabola")
            axis.plot([], [], "--", color="grey", linewidth=1, label="one depth for all")
            axis.plot([], [], "*", color="grey", label="its r*")
        axis.set_xscale("log")
        axis.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axis.minorticks_off()
        axis.set_title(f"{exponent(budget)} FLOPs", fontsize=10)
        axis.set_xlabel("r, expert FLOPs / attention FLOPs")
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("held-out loss, nats per byte")
    figure.tight_layout()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "allocation-valleys.png", dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
