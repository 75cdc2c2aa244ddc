"""Why a law of the best ratio is to be doubted, whatever is asked of it."""

from isoflop.laws import BestRatio, Fit
from isoflop.spec import CONVENTIONS


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
