"""Why a law of the best ratio, or a model that was moved to a ratio, is to be doubted."""

from typing import Final

from isoflop.laws import BestRatio, Fit
from isoflop.spec import CONVENTIONS, DecoderSpec

_USUAL: Final = {"d_ff": (0.25, 16.0), "width of all heads": (0.25, 4.0)}
"""Shares of d_model that anybody gives to these; a dense d_ff is 8/3 of it, heads are as wide together."""


def of_status(best: BestRatio) -> list[str]:
    """That its fit did not converge."""
    law = best.law
    if not isinstance(law, Fit) or law.status == "converged":
        return []
    return [f"The law of the best ratio, from {best.name}, has status {law.status}: {law.message.rstrip('.')}."]


def of_convention(best: BestRatio, assumed: str) -> list[str]:
    """That how it counts r is assumed."""
    if best.convention in CONVENTIONS:
        return []
    how = (
        "does not say how it counts r" if best.convention is None else f"counts r as {best.convention!r}, unknown here"
    )
    return [
        f"{best.name} {how}: {assumed} is assumed; if it was counted otherwise, say so with `isoflop valleys "
        "--convention`."
    ]


def of_shape(model: DecoderSpec, ratio: float) -> list[str]:
    """That the model at a ratio has proportions that nobody trains; experts count as wide as a token uses them."""
    width = model.feed_forward.d_ff
    if model.experts is not None:
        width = (model.experts.top_k + model.experts.shared_experts) * model.d_expert
    widths = {"d_ff": width, "width of all heads": model.attention.width}
    odd = [
        f"{name} {widths[name]:,} is {widths[name] / model.d_model:.3g} times d_model {model.d_model:,} (usual: "
        f"{low:g} to {high:g})"
        for name, (low, high) in _USUAL.items()
        if not low <= widths[name] / model.d_model <= high
    ]
    if not odd:
        return []
    return [
        f"The model at r = {ratio:.3g} has proportions that no law here was fitted to: {'; '.join(odd)}; ask for a "
        "ratio nearer to the template's, or for another context."
    ]


def of_context(best: BestRatio, context: int) -> list[str]:
    """That r* was measured at other contexts."""
    if not best.beyond(context=float(context)):
        return []
    low, high = best.range["context"]
    measured = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return [
        f"r* by {best.name} is assumed not to depend on the context: it was measured at {measured}, and the model has "
        f"{context}, where equal r is another split of widths, since scores take another share."
    ]
