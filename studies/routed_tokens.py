"""Which tokens depth-routed blocks compute, and what the dial at inference trades: of finished runs on bytes.

    python studies/routed_tokens.py RUN [RUN …] --data DATA --out docs/results/figures

RUN is a run directory with a checkpoint (`keep_checkpoints: 1`), DATA its data directory. Prints, and draws into
`depth-tokens.png`, the share of the tokens of each character class and each position that a routed block computes, as
sampled; and into `depth-dial.png` the held-out loss when the thresholds are moved to other capacities than the one of
training (`isoflop sample --depth-capacity`), against the share that is then really computed.
"""

import argparse
import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import torch

from isoflop.data import TokenData, evaluation_windows
from isoflop.nn import Decoder
from isoflop.train import load_model
from isoflop.train.evaluation import measure

matplotlib.use("Agg")

from matplotlib import pyplot

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DIAL = (0.03, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
BATCH = 64
CLASSES = ("space", "newline", "first letter", "second letter", "later letter", "digit", "punctuation", "other")


def classes(windows_WT: np.ndarray) -> np.ndarray:
    """Index into CLASSES of each byte."""
    byte = windows_WT
    letter = ((byte | 32) >= ord("a")) & ((byte | 32) <= ord("z")) & (byte < 128)

    def before(mask: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)

    first = letter & ~before(letter)
    second = letter & before(first)
    found = np.full(byte.shape, CLASSES.index("other"))
    printable = (byte > 32) & (byte < 127)
    for name, mask in (
        ("punctuation", printable & ~letter),
        ("digit", (byte >= ord("0")) & (byte <= ord("9"))),
        ("space", byte == ord(" ")),
        ("newline", (byte == ord("\n")) | (byte == ord("\r"))),
        ("later letter", letter),
        ("second letter", second),
        ("first letter", first),
    ):
        found[mask] = CLASSES.index(name)
    return found


@torch.no_grad()
def kept_mask(model: Decoder, tokens_WT: np.ndarray) -> np.ndarray:
    """Which tokens each routed block computes, bool [blocks, W, T]."""
    masks: list[list[torch.Tensor]] = [[] for _ in model.depth_routers]

    def note(index: int, batch: int, length: int):
        def hook(_module: torch.nn.Module, _args: object, kept: object) -> None:
            rows_M = kept.rows_M if kept.real_AC is None else kept.rows_M[kept.real_AC.reshape(-1)]  # type: ignore[attr-defined]
            mask = torch.zeros(batch * length, dtype=torch.bool)
            mask[rows_M.cpu()] = True
            masks[index].append(mask.view(batch, length))

        return hook

    for start in range(0, len(tokens_WT), BATCH):
        tokens_BT = torch.from_numpy(np.ascontiguousarray(tokens_WT[start : start + BATCH])).long()
        hooks = [
            router.register_forward_hook(note(index, *tokens_BT.shape))
            for index, router in enumerate(model.depth_routers)
        ]
        model(tokens_BT)
        for hook in hooks:
            hook.remove()
    return np.stack([torch.cat(of_block).numpy() for of_block in masks])


def main() -> None:
    """Print the shares and write the two figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=131072, help="held-out tokens")
    parser.add_argument("--out", type=Path, default=Path("docs/results/figures"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = TokenData(args.data)
    tokens, (by_class, by_position) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    dial, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
    width = 0.8 / len(args.runs)
    for number, path in enumerate(args.runs):
        loaded = load_model(path, device="cpu")
        model, spec = loaded.model, loaded.spec
        assert spec.depth_routing is not None, f"{path} has no depth routing"
        windows_WT = evaluation_windows(data, context=spec.context, tokens=args.tokens)
        model.decisions = "sampled"
        kept = kept_mask(model, windows_WT[:, :-1])
        kinds = classes(windows_WT[:, :-1])
        label = re.sub(r"-d\d+-l\d+-s\d+-\w+$", "", path.name)
        shares = [kept[:, kinds == index].mean() if (kinds == index).any() else np.nan for index in range(len(CLASSES))]
        print(f"\n{path.name}: {kept.mean():.1%} of the tokens, by block {', '.join(f'{b.mean():.1%}' for b in kept)}")
        for name, share, index in zip(CLASSES, shares, range(len(CLASSES)), strict=True):
            print(f"  {name:14s} {share:6.1%}   ({(kinds == index).mean():.1%} of the text)")
        edge = kept.shape[2] // 8
        print(
            f"  first eighth of the positions {kept[..., :edge].mean():.1%}, last eighth {kept[..., -edge:].mean():.1%}"
        )
        print("  share of the blocks' computed tokens that both of two neighbouring routed blocks compute:")
        for low, high in itertools.pairwise(kept):
            both = (low & high).sum() / min(low.sum(), high.sum())
            print(f"    {both:.1%} (by chance {max(low.mean(), high.mean()):.1%})")
        colour = COLOURS[number % len(COLOURS)]
        places = np.arange(len(CLASSES)) + (number - (len(args.runs) - 1) / 2) * width
        by_class.bar(places, shares, width, color=colour, label=label)
        by_position.plot(kept.mean((0, 1)), color=colour, linewidth=1, label=label)
        if not model.depth_routers[0].is_learned:
            continue
        curve = []
        for capacity in DIAL:
            model.set_depth_capacity(capacity)
            found = measure(model, windows_WT, batch_size=BATCH)
            curve.append((found.kept_share, found.loss))
            print(f"  dial {capacity:6.3f}: computes {found.kept_share:.1%}, held-out loss {found.loss:.4f}")
        panel.plot(*zip(*curve, strict=True), "o-", color=colour, markersize=4, linewidth=1, label=label)
        panel.axvline(spec.depth_routing.capacity, color=colour, linewidth=0.6, linestyle=":")
    by_class.set_xticks(range(len(CLASSES)), CLASSES, rotation=30, ha="right")
    by_class.set(ylabel="share computed, as sampled", title="By character")
    by_position.set(xlabel="position in the window", ylim=(0, None), title="By position")
    by_position.legend(frameon=False, fontsize=8)
    panel.set(
        xlabel="share of the tokens that routed blocks compute",
        ylabel="held-out loss (nats/token)",
        title="The dial at inference (dotted: capacity of training)",
    )
    panel.legend(frameon=False, fontsize=8)
    for figure, name in ((tokens, "depth-tokens.png"), (dial, "depth-dial.png")):
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(args.out / name, dpi=130)


if __name__ == "__main__":
    main()
