"""`isoflop count`: parameters, FLOPs and bytes of a spec."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli._common import JsonFlag, print_json, print_table, si
from isoflop.errors import InputError
from isoflop.spec import CONVENTIONS


def count(
    spec: Annotated[Path, typer.Argument(help="Spec file (.yaml or .json).")],
    context: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Tokens in a sequence; default: the spec's context.")
    ] = None,
    convention: Annotated[
        str, typer.Option(metavar="NAME", help=f"How FLOPs are counted: {', '.join(CONVENTIONS)}.")
    ] = "exact",
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Tokens in one forward, for memory; default: one sequence.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Count parameters, FLOPs per token and memory of a model, by part."""
    from isoflop import spec as room

    model = room.load_spec(spec)
    for sentence in model.warnings:
        warnings.warn(sentence, stacklevel=1)
    counted = room.count(model, context=context, convention=convention)
    batch_tokens = counted.context if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
    training = room.memory(model, batch_tokens=batch_tokens)
    cache = room.kv_cache_bytes(model, tokens=counted.context)
    sparsity = model.experts.sparsity if model.experts else 0.0
    if json:
        bytes_by_part = {
            **vars(training),
            "training_total": training.total,
            "kv_cache": cache,
            "batch_tokens": batch_tokens,
        }
        print_json({**counted.to_dict(), "sparsity": sparsity, "memory": bytes_by_part})
        return
    total = counted.flops_per_token["total"]
    parameter_sum = sum(counted.params_by_part.values())
    names = list(dict.fromkeys([*counted.params_by_part, *counted.flops_per_token]))
    names.remove("total")
    rows = []
    for name in names:
        parameters = counted.params_by_part.get(name)
        flops = counted.flops_per_token.get(name)
        rows.append(
            [
                name,
                "–" if parameters is None else f"{parameters:,}",
                "–" if flops is None else f"{flops:,.0f}",
                "–" if flops is None else f"{flops / total:.1%}",
            ]
        )
    rows.append(["sum", f"{parameter_sum:,}", f"{total:,.0f}", "100.0%"])
    print_table(
        f"{spec} · context {counted.context:,} · convention {convention}",
        ["part", "parameters", "forward FLOPs/token", "share"],
        rows,
    )
    print_table(
        "",
        ["quantity", "value"],
        [
            ["params_total (non-embedding)", f"{counted.params_total:,}"],
            ["params_active (non-embedding)", f"{counted.params_active:,}"],
            ["params_embedding", f"{counted.params_embedding:,}"],
            *(
                [["depth_capacity (of the routed blocks)", f"{model.depth_routing.capacity:g}"]]
                if model.depth_routing
                else []
            ),
            ["training FLOPs per token", si(counted.training_flops_per_token, 4)],
            ["expert_attention_ratio", f"{counted.expert_attention_ratio:.3f}"],
            ["sparsity (idle experts; shared ones are always used)", f"{sparsity:.2%}"],
            [f"memory to train, {batch_tokens:,} tokens a forward", f"{training.total / 2**20:,.1f} MiB"],
            [
                "  weights + gradients + optimizer",
                f"{(training.weights + training.gradients + training.optimizer) / 2**20:,.1f} MiB",
            ],
            ["  activations + logits", f"{(training.activations + training.logits) / 2**20:,.1f} MiB"],
            [f"KV cache of one sequence of {counted.context:,}", f"{cache / 2**20:,.2f} MiB"],
        ],
    )
