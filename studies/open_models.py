"""Where published Mixture-of-Experts models stand: expert–attention ratio, sparsity, granularity, against r*(C, S).

    python studies/open_models.py studies/open-models.csv
    python studies/open_models.py studies/open-models.csv --plot docs/results/figures/allocation-open-models.png

The CSV holds the numbers of public configurations; the parameters that follow from them are printed beside the
published ones, which checks them. FLOPs are the forward ones of a token in a full context (`expert-attention`: n keys,
router with the experts, no head); sliding windows hold at most their width of keys. Latent attention (DeepSeek-V2 and
after, Kimi K2) has the projections of training. r* is the published law of arXiv 2603.10379 at C = 6·N_active·D, where
D is known: it was fitted to sparsities from 82% on and to budgets up to 1e21, so that these models lie far outside.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.laws import published

LAW = "li-2026"


@dataclass(frozen=True)
class OpenModel:
    """What a configuration says, and what follows."""

    name: str
    values: dict[str, float]

    def __getitem__(self, key: str) -> float:
        return self.values.get(key, 0.0)

    @property
    def attention_matrices(self) -> float:
        """Parameters of one attention layer."""
        d, heads, size = self["d_model"], self["heads"], self["head_dim"]
        if not self["kv_rank"]:
            return 2 * d * size * (heads + self["kv_heads"])
        queries = d * self["q_rank"] + self["q_rank"] * heads * (size + self["rope_dim"])
        keys = d * (self["kv_rank"] + self["rope_dim"]) + self["kv_rank"] * heads * (size + self["value_dim"])
        return queries + keys + heads * self["value_dim"] * d

    def attention_flops(self, context: float) -> float:
        """Forward FLOPs per token of all attention layers."""
        width = self["heads"] * self["head_dim"]
        widths = 2 * width
        if self["kv_rank"]:
            widths = self["heads"] * (self["head_dim"] + self["rope_dim"] + self["value_dim"])
        window = min(context, self["window"] or context)
        keys = (1 - self["windowed_share"]) * context + self["windowed_share"] * window
        return self["layers"] * (2 * self.attention_matrices + 2 * keys * widths)

    @property
    def expert_flops(self) -> float:
        """Forward FLOPs per token of experts, shared ones and router, and of dense feed-forward layers."""
        d, moe = self["d_model"], self["layers"] - self["dense_layers"]
        experts = 6 * d * self["d_expert"] * (self["top_k"] + self["shared"]) + 2 * d * self["experts"]
        return moe * experts + self["dense_layers"] * 6 * d * self["dense_ff"]

    def ratio(self, context: float) -> float:
        """r."""
        return self.expert_flops / self.attention_flops(context)

    @property
    def sparsity(self) -> float:
        """S, shared experts counted."""
        return 1 - (self["top_k"] + self["shared"]) / (self["experts"] + self["shared"])

    @property
    def granularity(self) -> float:
        """Width of a dense gated feed-forward, 8/3 d_model, / width of an expert."""
        return 8 / 3 * self["d_model"] / self["d_expert"]

    def params(self, *, active: bool, embedding: bool) -> float:
        """Parameters in all, or those that a token uses."""
        d, moe = self["d_model"], self["layers"] - self["dense_layers"]
        used = (self["top_k"] if active else self["experts"]) + self["shared"]
        matrices = self["layers"] * self.attention_matrices + self["dense_layers"] * 3 * d * self["dense_ff"]
        matrices += moe * (3 * d * self["d_expert"] * used + d * self["experts"])
        return matrices + embedding * self["vocabulary"] * d * (1 if self["tied"] else 2)

    @property
    def flops(self) -> float | None:
        """Training FLOPs, 6·N_active·D; None where the tokens are not public."""
        return 6 * self.params(active=True, embedding=False) * self["tokens"] if self["tokens"] else None

    @property
    def best_ratio(self) -> float | None:
        """r*(C, S) of the published law."""
        if self.flops is None:
            return None
        return float(published(LAW).predict({"flops": [self.flops], "sparsity": [self.sparsity]})[0])


def read(path: Path) -> list[OpenModel]:
    """Every row of the CSV."""
    with path.open(encoding="utf-8") as file:
        return [
            OpenModel(row["name"], {key: float(value) for key, value in row.items() if value and key not in _TEXT})
            for row in csv.DictReader(file)
        ]


_TEXT = ("name", "source")


def cells(model: OpenModel, context: int) -> list[str]:
    """A line of the table."""
    total, active = (model.params(active=used, embedding=True) for used in (False, True))
    ratio, best, flops = model.ratio(context), model.best_ratio, model.flops
    return [
        model.name,
        f"{total / 1e9:.1f}B ({total / model['published_total'] - 1:+.1%})",
        f"{active / total:.1%}",
        f"{model.sparsity:.1%}",
        f"{model.granularity:.1f}",
        f"{ratio:.2f}",
        f"{model.ratio(8 * context):.2f}",
        "–" if flops is None else f"{flops:.1e}",
        "–" if best is None else f"{best:.2f}",
        "–" if best is None else f"×{best / ratio:.2f}",
    ]


HEAD = ("model", "parameters (against published)", "active", "S", "G", "r", "r, 8 × context", "C", "r*", "r* / r")


CURVES = ((0.8235, "g1"), (0.9091, "g4"), (0.9538, "g16"), (0.9767, "g64"))
"""Sparsities of the published sweep, and their colours."""


def draw(models: list[OpenModel], context: int, path: Path) -> None:
    """r against training FLOPs, beside r*(C, S) of a few sparsities."""
    import numpy as np

    from isoflop.report.style import LIGHT, WIDE, grid, legend, log_axis, name_lines

    known = sorted((m for m in models if m.flops is not None), key=lambda m: -m.ratio(context))
    figure, (axes,) = grid(1, width=WIDE, panel_height=4.8)
    flops = np.geomspace(1e18, 2e25, 200)
    log_axis(axes, "x", [1e18, 2e25], kind="flops", most=8, margin=0.01)
    log_axis(axes, "y", [0.5, 10.0], most=8)
    law, ends = published(LAW), []
    for sparsity, role in CURVES:
        best = law.predict({"flops": flops, "sparsity": np.full_like(flops, sparsity)})
        seen = flops <= 1e21
        axes.plot(flops[seen], best[seen], color=LIGHT[role], linewidth=2.0)
        axes.plot(flops, best, color=LIGHT[role], linewidth=1.0, linestyle=(0, (4, 3)))
        ends.append((f"r*, S = {sparsity:.0%}", float(flops[-1]), float(best[-1]), {"color": LIGHT[role]}))
    entries = []
    for number, model in enumerate(known, start=1):
        role = min(CURVES, key=lambda curve, own=model: abs(curve[0] - own.sparsity))[1]
        look = {"marker": f"${number}$", "color": LIGHT[role], "linestyle": "none"}
        axes.plot([model.flops], [model.ratio(context)], markersize=9, **look)
        entries.append((f"{model.name} (S = {model.sparsity:.0%})", look | {"markersize": 7}))
    name_lines(axes, ends)
    axes.set_xlabel("training FLOPs, 6·N_active·D")
    axes.set_ylabel("expert–attention ratio r")
    legend(figure, entries)
    figure.savefig(path, dpi=144, facecolor=LIGHT["surface"])


def main() -> None:
    """Print the table as Markdown."""
    parser: Any = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    models = read(arguments.models)
    rows = [HEAD, ["---"] * len(HEAD), *(cells(model, arguments.context) for model in models)]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if arguments.plot:
        draw(models, arguments.context, arguments.plot)


if __name__ == "__main__":
    main()
