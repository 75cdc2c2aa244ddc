"""Depth routing for a model that was trained without it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from isoflop.errors import InputError
from isoflop.nn.decoder import Decoder
from isoflop.spec import DecoderSpec, DepthRoutingSpec


def retrofit(model: Decoder, depth_routing: DepthRoutingSpec, *, seed: int = 0) -> Decoder:
    """A new decoder with the weights of `model`, dense or MoE, and depth routing added; to be fine-tuned.

    Learned routers start as zeros, so that with the gate "sigmoid" a kept token's update has the factor
    2·sigmoid(0) = 1: at capacity 1 the function is that of `model` (up to the order in which three terms are added),
    and at any capacity each kept token gets its whole update. The gradient of the loss reaches the routers from the
    first step. A predictor has its usual init, drawn with `seed`.

    Below capacity 1 a router of zeros has no preference until it has learned one: of tied scores `topk` keeps whichever
    it likes (on the CPU a run of neighbouring tokens), and the sampling rules keep none.

    The copy decides as in training (`decisions` is "trained") and has the model's mode, device and dtype.

    Raises:
        InputError: if the model has depth routing already, the gate of learned routers is "raw" (it would start as 0
            and switch the blocks off), or the model has no block that `depth_routing` routes.
    """
    if model.spec.depth_routing is not None:
        raise InputError("model has depth routing already; it can be added to one that was trained without it.")
    spec = replace(model.spec, depth_routing=depth_routing)
    weights = model.embedding_VD
    routed = Decoder(spec, seed=seed, device=weights.device, dtype=weights.dtype)
    copy_weights(model, routed)
    routed.activation_checkpointing = model.activation_checkpointing
    return routed.train(model.training)


@torch.no_grad()
def copy_weights(source: Decoder, target: Decoder) -> None:
    """Copy weights and buffers into a decoder of the same spec, or of one that adds depth routing (see `retrofit`).

    Raises InputError in other cases, naming the first field that differs.
    """
    reason = obstacle(source.spec, target.spec)
    if reason is not None:
        raise InputError(f"{reason}.")
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected
    if source.spec.depth_routing is not None:
        assert not missing
        return
    for router in target.depth_routers:
        if router.is_learned:
            router.w_1D.zero_()


def obstacle(source: DecoderSpec, target: DecoderSpec) -> str | None:
    """Why a model of `target` cannot start from the weights of one of `source`, without the full stop; None: it can."""
    routing = target.depth_routing
    adds_routing = source.depth_routing is None and routing is not None
    plain = replace(target, depth_routing=None) if adds_routing else target
    for name, there, here in _differences(_fields(source), _fields(plain)):
        if name.startswith("depth_routing") and routing is not None:
            return f"{name} is {there} there and {here} here; it can be added to weights that were trained without it"
        return f"{name} is {there} there and {here} here; they may differ in added depth_routing alone"
    if adds_routing and routing is not None and routing.router == "learned" and routing.gate == "raw":
        return (
            "depth_routing.gate is 'raw', which is 0 for the new routers and would switch their blocks off; it must be "
            "'sigmoid', which is 1"
        )
    return None


def _fields(spec: DecoderSpec) -> dict[str, Any]:
    """The spec as nested dictionaries, with the defaults that depend on other fields filled in."""
    spec = replace(spec, attention=replace(spec.attention, n_kv_heads=spec.attention.kv_heads))
    if spec.depth_routing is not None and spec.depth_routing.has_predictor:
        width = spec.depth_routing.hidden_width(spec.d_model)
        spec = replace(spec, depth_routing=replace(spec.depth_routing, predictor_width=width))
    return asdict(spec)


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Name and both values of each field that differs, in the order of the fields."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in there:
            yield from _differences(there[key], here[key], f"{name}.{key}" if name else key)
    elif there != here:
        yield name, _shown(there), _shown(here)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return "given" if isinstance(value, Mapping) else str(value)
