"""Where a step's time goes, by kind of operation."""

from collections.abc import Callable, Iterable
from typing import Any

KINDS: dict[str, tuple[str, ...]] = {
    "optimiser": ("adamw", "foreach", "linalg_vector_norm", "optimizer"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "grouped_mm",
        "aten::linear",
        "matmul",
    ),
    "gathers and order": (
        *("index", "gather", "scatter", "embedding", "aten::sort", "topk", "searchsorted", "where", "nonzero"),
        *("histc", "cumsum", "one_hot"),
    ),
    "norms and softmax": ("rms_norm", "layer_norm", "softmax", "rsqrt", "aten::mean", "nll_loss", "cross_entropy"),
    "copies": ("aten::copy_", "aten::cat", "clone", "contiguous", "aten::repeat"),
    "allocation": ("aten::empty", "aten::zeros", "aten::zero_", "aten::fill_", "aten::new_", "aten::resize"),
    "elementwise": (
        *("aten::mul", "aten::add", "aten::div", "aten::sub", "aten::neg", "silu", "aten::pow", "aten::sum"),
        *("sigmoid", "aten::exp", "aten::log", "accumulategrad", "aten::cos", "aten::sin"),
    ),
}
"""Kinds in the order in which they are tried: an operation is of the first that has a part of its name."""
REST = "rest of the operations"


def kind_of(operation: str) -> str:
    """The kind of a torch operation, by its name."""
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), REST)


def by_kind(operations: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums of the operations' values by kind, in the order of KINDS."""
    sums = dict.fromkeys([*KINDS, REST], 0.0)
    for name, value in operations:
        sums[kind_of(name)] += value
    return sums


def profile(step: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Milliseconds a step by kind, and of the costliest operations, from torch.profiler's own times."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    step()
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    operations = [(event.key, event.self_cpu_time_total / 1e3 / steps) for event in profiler.key_averages()]
    costliest = sorted(operations, key=lambda each: -each[1])[:12]
    return {"kinds": by_kind(operations), "costliest": costliest}


def peak_of_tensors(step: Callable[[], Any]) -> int:
    """Most bytes of tensors that a step holds above those that it finds, from torch.profiler's allocations."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def show(profiles: dict[str, dict[str, Any]], wall: dict[str, float]) -> str:
    """A table of kinds by side, in ms a step; what the clock says beyond the operations is Python's and torch's."""
    names = list(profiles)
    lines = [f"{'ms a step':<26}" + "".join(f"{name:>18}" for name in names)]
    for kind in [*KINDS, REST]:
        values = [profiles[name]["kinds"][kind] for name in names]
        cells = (f"{v:10.2f} ({v / (wall[n] * 1e3):4.0%})" for v, n in zip(values, names, strict=True))
        lines.append(f"{kind:<26}" + "".join(f"{cell:>18}" for cell in cells))
    sums = [sum(profiles[name]["kinds"].values()) for name in names]
    lines.append(f"{'all, with the profiler on':<26}" + "".join(f"{value:>18.2f}" for value in sums))
    lines.append(f"{'clock, without it':<26}" + "".join(f"{wall[name] * 1e3:>18.2f}" for name in names))
    for name in names:
        top = ", ".join(f"{key} {value:.2f}" for key, value in profiles[name]["costliest"])
        lines.append(f"{name}: {top}")
    return "\n".join(lines)
