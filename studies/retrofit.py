"""What depth routing does to a finished dense run: held-out loss against capacity, before and after a fine-tune.

    python studies/retrofit.py runs/dense data --tokens 2e6 --out runs/retrofit

Every other block is routed, with a router of zeros and the gate 2·sigmoid, so that at capacity 1 the model is at first
the dense one. Every model, the dense one too, is fine-tuned for the same FLOPs: those of --tokens in the dense model.
What more training alone gains is therefore in the dense line, and a smaller capacity sees more tokens. Seeds decide the
order of the data and the predictors' init; the dense run is one.

"As trained" is the top-k of the whole sequence, which looks ahead; "as sampled" decides token by token, and is the one
to compare. Before the fine-tune a router of zeros prefers no token: top-k then keeps an arbitrary run of neighbours,
and the thresholds keep none below capacity 1, so that "as sampled" is the model with its routed blocks left out.

Writes retrofit.csv and retrofit.png into --out, and a run directory for each fine-tune, where an interrupted one goes
on and a finished one is not repeated.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from isoflop.data import Batches, TokenData, evaluation_windows
from isoflop.errors import InputError, RunError
from isoflop.laws import RunTable, write_runs
from isoflop.nn import Decoder, calibrate_thresholds, retrofit
from isoflop.spec import DepthRoutingSpec, count
from isoflop.spec.depth_routing import SampledBy
from isoflop.train import LoadedModel, TrainConfig, load_model, measure, resolve, train
from isoflop.train.run import CALIBRATION_TOKENS

CAPACITIES = (1.0, 0.75, 0.5, 0.25, 0.125)
RATE = 0.3
"""Share of the dense run's peak learning rate that the fine-tune has by default: the run has decayed to a tenth."""
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, measure, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run without depth routing, dense or MoE")
    parser.add_argument("data", type=Path, help="data directory")
    parser.add_argument("--tokens", type=float, required=True, help="tokens of the dense fine-tune: the budget")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--capacities", type=float, nargs="+", default=CAPACITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=(101, 102))
    parser.add_argument("--sampled-by", choices=get_args(SampledBy), default="threshold")
    parser.add_argument("--learning-rate", type=float, help=f"peak; default: {RATE} times that of the run")
    parser.add_argument("--batch-tokens", type=int, help="default: that of the run")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        rows = study(options)
    except (InputError, RunError) as error:
        sys.exit(f"error: {error}")
    write_runs(RunTable(rows), options.out / "retrofit.csv")
    draw(rows, options.out / "retrofit.png")
    summarise(rows)


def study(options: argparse.Namespace) -> list[Row]:
    """One row for each model and seed."""
    source, data = load_model(options.run), TokenData(options.data)
    routings = [None] + [
        DepthRoutingSpec(capacity=capacity, gate="sigmoid", sampled_by=options.sampled_by)
        for capacity in sorted(options.capacities, reverse=True)
    ]
    specs = [replace(source.spec, depth_routing=routing) for routing in routings]
    settings = json.loads((source.run / "config.json").read_text())
    record = _record(source)
    per_token = count(source.spec).training_flops_per_token
    config = TrainConfig(
        flops=options.tokens * per_token,
        batch_tokens=options.batch_tokens or record["batch_tokens"],
        learning_rate=options.learning_rate or RATE * record["learning_rate"],
        evaluation_tokens=settings["evaluation_tokens"],
        dtype=settings["dtype"],
        init=str(options.run),
        threads=options.threads,
        keep_checkpoints=1,
    )
    n_runs = len(specs) * len(options.seeds)
    seconds = n_runs * resolve(source.spec, config).flops / record["flops_per_second"]
    sys.stderr.write(
        f"{n_runs} runs of {config.flops:.2g} FLOPs: {seconds / 60:.1f} min at the speed of {options.run}\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for spec in specs:
        routing = spec.depth_routing
        before = losses_before(source, routing, data, config)
        for seed in options.seeds:
            name = "dense" if routing is None else f"capacity-{routing.capacity:g}"
            out = options.out / f"{name}-seed-{seed}"
            after = train(spec, replace(config, seed=seed), data=data, out=out)
            rows.append(
                {
                    "run_id": out.name,
                    "architecture": "dense" if routing is None else "retrofit",
                    "depth_capacity": 1.0 if routing is None else routing.capacity,
                    "seed": seed,
                    "status": after["status"],
                    **before,
                    "loss_after_as_trained": after["loss"] if routing is None else after["loss_as_trained"],
                    "loss_after_as_sampled": after["loss"],
                    "loss_std": after["loss_std"],
                    "kept_share_after": 1.0 if routing is None else after["kept_share"],
                    "depth_agreement_after": None if routing is None else after["depth_agreement"],
                    "flops_per_token_share": count(spec).training_flops_per_token / per_token,
                    **{key: after[key] for key in ("flops", "tokens", "steps", "learning_rate", "wall_seconds")},
                }
            )
    return rows


def _record(source: LoadedModel) -> Row:
    path = source.run / "result.json"
    if not path.exists():
        raise InputError(f"run is {source.run}, which has not ended; a finished run is needed.")
    record: Row = json.loads(path.read_text())
    return record


def losses_before(source: LoadedModel, routing: DepthRoutingSpec | None, data: TokenData, config: TrainConfig) -> Row:
    """Held-out losses of the model with routers of zeros."""
    model: Decoder = source.model if routing is None else retrofit(source.model, routing)
    context = source.spec.context
    windows_WT = evaluation_windows(data, context=context, tokens=config.evaluation_tokens)
    sequences = resolve(model.spec, config).micro_batch
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32

    def losses() -> Any:
        return measure(model, windows_WT, batch_size=sequences, dtype=dtype)

    trained = sampled = losses()
    if routing is not None:
        batches = Batches(data, context=context, batch_size=sequences, seed=0)
        n_batches = math.ceil(CALIBRATION_TOKENS / (sequences * context))
        calibrate_thresholds(model, [torch.from_numpy(batches.batch(step))[:, :-1] for step in range(n_batches)])
        model.decisions = "sampled"
        sampled = losses()
    return {
        "loss_before_as_trained": trained.loss,
        "loss_before_as_sampled": sampled.loss,
        "kept_share_before": sampled.kept_share,
    }


def mean(rows: Sequence[Row], name: str, **wanted: Any) -> float:
    """Mean over seeds of a column, in the rows whose other columns are as wanted; NaN if one has no value."""
    values = [row[name] for row in rows if all(row[key] == value for key, value in wanted.items())]
    return math.nan if None in values else sum(values) / len(values)


def gaps(rows: Sequence[Row], capacity: float) -> list[float]:
    """Loss as sampled after the fine-tune, less that of the dense model of the same seed and FLOPs."""
    found = []
    for row in rows:
        if row["architecture"] == "retrofit" and row["depth_capacity"] == capacity:
            dense = mean(rows, "loss_after_as_sampled", architecture="dense", seed=row["seed"])
            loss = row["loss_after_as_sampled"]
            found.append(math.nan if loss is None else loss - dense)
    return found


def summarise(rows: Sequence[Row]) -> None:
    """Print the means over seeds, and the range of the gap to the dense model."""
    print("capacity  FLOPs/token   before: trained  sampled   after: trained  sampled   gap to dense, as sampled")
    for capacity in _capacities(rows):
        one = {"architecture": "retrofit", "depth_capacity": capacity}
        gap = gaps(rows, capacity)
        print(
            f"{capacity:8g}  {mean(rows, 'flops_per_token_share', **one):11.3f}  "
            f"{mean(rows, 'loss_before_as_trained', **one):16.4f}  {mean(rows, 'loss_before_as_sampled', **one):7.4f}  "
            f"{mean(rows, 'loss_after_as_trained', **one):15.4f}  {mean(rows, 'loss_after_as_sampled', **one):7.4f}   "
            f"{sum(gap) / len(gap):+.4f} ({min(gap):+.4f} to {max(gap):+.4f})"
        )
    before, after = (mean(rows, f"loss_{when}_as_sampled", architecture="dense") for when in ("before", "after"))
    print(f"   dense  {1:11.3f}  {before:16.4f}  {before:7.4f}  {after:15.4f}  {after:7.4f}")


def _capacities(rows: Sequence[Row]) -> list[float]:
    return sorted({row["depth_capacity"] for row in rows if row["architecture"] == "retrofit"}, reverse=True)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Loss against capacity: before and after on the left, after alone on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    capacities = _capacities(rows)
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, moments in zip(panels, (("before", "after"), ("after",)), strict=True):
        for moment in moments:
            colour = {"before": "#D55E00", "after": "#0072B2"}[moment]
            for choice, style in (("trained", "--"), ("sampled", "-")):
                name = f"loss_{moment}_as_{choice}"
                line = [mean(rows, name, architecture="retrofit", depth_capacity=each) for each in capacities]
                panel.plot(capacities, line, style, color=colour, label=f"{moment} the fine-tune, as {choice}")
                own = [row for row in rows if row["architecture"] == "retrofit" and row[name] is not None]
                filled = colour if choice == "sampled" else "white"
                panel.plot(
                    [row["depth_capacity"] for row in own],
                    [row[name] for row in own],
                    "o",
                    color=colour,
                    markerfacecolor=filled,
                    markersize=4,
                )
            level = mean(rows, f"loss_{moment}_as_sampled", architecture="dense")
            words = "dense" if moment == "before" else "dense, fine-tuned for the same FLOPs"
            panel.axhline(level, color=colour, linestyle=":", label=words)
        panel.set_xscale("log", base=2)
        panel.set_xticks(capacities, [f"{capacity:g}" for capacity in capacities])
        panel.minorticks_off()
        panel.set(xlabel="capacity of every other block", ylabel="held-out loss (nats/token)")
    panels[0].set_title("Before and after the fine-tune")
    panels[1].set_title("After")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
