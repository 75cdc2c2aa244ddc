"""How often the intervals of valleys in the expert–attention ratio hold the truth, over many made-up studies.

    python -m benchmarks.coverage_valleys                     # 200 studies of each depth; a few minutes

A study has the grid of studies/allocation.yaml: three sparsities, three budgets, six ratios each from .25 to 4, one run
each but three at the middle budget, and normal noise of .015 nats. Truth: r* = A (1−S)^p C^(B (1−S)^q) between .6 and
2.4; the valley is a parabola in ln r of the given depth (nats per squared ln r), or 2·(cosh(ln r/r*) − 1) times it,
which only begins like one.

Printed for each depth: the share of valleys whose vertex is inside the grid; of these, how often r*'s 90% interval
exists and holds the truth; how often the depth's does, over all valleys; and of one depth for all (`shared_valley`):
how often its interval holds the truth, the share of studies that yield a law, and how often its interval of r* at the
middle of the grid holds the truth. 200 studies: standard error 2%.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from isoflop import laws

NOISE = 0.015
RATIOS = np.array([0.25, 0.45, 0.8, 1.4, 2.4, 4.0])
SPARSITIES = (0.5, 0.875, 0.96875)
BUDGETS = ((3e11, 1), (1e12, 3), (3e12, 1))
TRUTH = {"A": 3e-3, "p": -0.3, "B": 0.2, "q": 0.0}
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "parabola": np.square,
    "cosh": lambda off: 2 * (np.cosh(off) - 1),
}


def best(sparsity: float, flops: float) -> float:
    """r* of the truth."""
    used = 1 - sparsity
    return float(TRUTH["A"] * used ** TRUTH["p"] * flops ** (TRUTH["B"] * used ** TRUTH["q"]))


def study(depth: float, shape: Callable[[np.ndarray], np.ndarray], seed: int) -> laws.RunTable:
    """One made-up run table."""
    rng = np.random.default_rng(seed)
    rows = []
    for sparsity in SPARSITIES:
        for budget, repeats in BUDGETS:
            for ratio in np.repeat(RATIOS, repeats):
                off = np.log(ratio / best(sparsity, budget))
                loss = 2 + 10 * budget**-0.1 + depth * shape(off) + NOISE * rng.standard_normal()
                row = {"sparsity": sparsity, "budget": budget, "flops": budget, "expert_attention_ratio": ratio}
                rows.append({"run_id": f"run-{len(rows)}", "status": "done", "loss": float(loss), **row})
    return laws.RunTable(rows)


def coverage(depth: float, shape: str, studies: int, level: float) -> str:
    """One line of the table."""
    inside, told, held, deep, shared_deep, fitted, law = 0, 0, 0, [], [], 0, []
    for seed in range(studies):
        valleys = laws.ratio_valleys(study(depth, SHAPES[shape], seed), level=level, seed=seed)
        for valley in valleys:
            truth = best(valley.sparsity, valley.flops)
            if valley.inside:
                inside += 1
                if valley.ratio_interval is not None:
                    told += 1
                    held += valley.ratio_interval[0] <= truth <= valley.ratio_interval[1]
            if valley.depth_interval is not None:
                deep.append(valley.depth_interval[0] <= depth <= valley.depth_interval[1])
        shared = laws.shared_valley(valleys, seed=seed)
        low, high = np.quantile(shared.depth_draws, [(1 - level) / 2, (1 + level) / 2])
        shared_deep.append(low <= depth <= high)
        if shared.law is None:
            continue
        found, fitted = shared.law, fitted + 1
        middle = {"sparsity": np.array([SPARSITIES[1]]), "flops": np.array([BUDGETS[1][0]])}
        drawn = found.form.predict(middle, {name: values[:, None] for name, values in found.draws.items()})[:, 0]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        law.append(low <= best(SPARSITIES[1], BUDGETS[1][0]) <= high)
    total = studies * len(SPARSITIES) * len(BUDGETS)
    shares = [inside / total, told / max(inside, 1), held / max(told, 1), np.mean(deep)]
    shares += [np.mean(shared_deep), fitted / studies]
    return f"{shape:<9}{depth:>7g}" + "".join(f"{share:>11.1%}" for share in shares) + f"{np.mean(law or [0]):>11.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=float, nargs="+", default=[0.005, 0.015, 0.05])
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--level", type=float, default=0.9)
    options = parser.parse_args()
    start = time.perf_counter()
    print(
        f"{'shape':<9}{'depth':>7}{'inside':>11}{'r* told':>11}{'r* held':>11}{'v held':>11}"
        f"{'one v':>11}{'a law':>11}{'law held':>11}"
    )
    for shape in options.shape:
        for depth in options.depth:
            print(coverage(depth, shape, options.studies, options.level), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
