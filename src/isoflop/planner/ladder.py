"""The integer size ladder: from a family of models to concrete shapes of rising size.

A Template with a width and a depth makes a DecoderSpec. Shapes (d_model, n_layers, d_ff, heads) depend on nothing but
the size, so the dense model and the MoE models of every granularity stand on the same rungs: at one rung they differ in
the experts alone, and their active parameters in the router (and the output norm) alone.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from isoflop.errors import InputError
from isoflop.planner.template import Template
from isoflop.spec import AttentionSpec, DecoderSpec, FeedForwardSpec, count

SPACING = 2**0.5
"""Default ratio of the active parameters of neighbouring rungs."""

MINIMUM_WIDTH = 16
"""Smallest d_model of the ladder."""

MAXIMUM_PARAMS = 1e14
"""Where the ladder ends, in active parameters: far above any model that was ever trained."""


def aspect(d_model: float) -> float:
    """d_model / n_layers of the ladder: 32 up to d_model 256, then 2·√d_model up to 64 at d_model 1024 and beyond.

    64 is the rule of the fine-grained paper (Krajewski et al. 2024, arXiv 2402.07871); small models get more depth,
    since a model of one or two blocks is no model of a large one.
    """
    return min(64.0, max(32.0, 2 * math.sqrt(d_model)))


def architecture(template: Template, *, d_model: int, n_layers: int | None = None) -> DecoderSpec:
    """The model of the family with this width, and the depth of the aspect rule (at least 2) unless one is given.

    Raises:
        InputError: if d_model is not a multiple of the head size.
    """
    head_dim = _head_dim(template, d_model)
    if d_model < 1 or d_model % head_dim:
        lower = max(1, d_model // head_dim) * head_dim
        raise InputError(
            f"d_model is {d_model}; it must be a multiple of head_dim={head_dim}, e.g. {lower} or {lower + head_dim}."
        )
    if n_layers is None:
        n_layers = max(2, round(template.depth * d_model / aspect(d_model)))
    ideal = _ideal_d_ff(template, d_model)
    multiple = template.width_multiple
    n_heads = d_model // head_dim
    return DecoderSpec(
        vocab_size=template.vocab_size,
        context=template.context,
        n_layers=n_layers,
        d_model=d_model,
        attention=AttentionSpec(
            n_heads=n_heads,
            head_dim=head_dim,
            n_kv_heads=None if template.queries_per_kv == 1 else n_heads // math.gcd(n_heads, template.queries_per_kv),
            qk_norm=template.qk_norm,
            rope_theta=template.rope_theta,
        ),
        feed_forward=FeedForwardSpec(
            d_ff=max(multiple, round(ideal / multiple) * multiple), activation=template.activation
        ),
        experts=template.experts,
        depth_routing=template.depth_routing,
        tied_head=template.tied_head,
        norm_eps=template.norm_eps,
        init_scale=template.init_scale,
    )


def ladder(template: Template, *, largest: float, spacing: float = SPACING) -> list[DecoderSpec]:
    """Every rung up to `largest` active non-embedding parameters, smallest first.

    Rung i is meant to have `spacing`^i times the parameters of the smallest model. The integers are coarse for tiny
    models: there a rung is the next model that is at least √spacing larger than the one before.

    Raises:
        InputError: if spacing is not in 1.1 … 4.
    """
    if not 1.1 <= spacing <= 4:
        raise InputError(f"spacing is {spacing}; it must be between 1.1 and 4.")
    dense = replace(template, name="", experts=None, depth_routing=None, granularities=_granularities(template))
    shapes: list[tuple[int, int]] = []
    for size, d_model, n_layers in _rungs(dense, spacing, _next_power(largest)):
        if size > largest:
            break
        shapes.append((d_model, n_layers))
    return [architecture(template, d_model=d_model, n_layers=n_layers) for d_model, n_layers in shapes]


def sizes_around(
    template: Template, target_active_params: float, n: int, spacing: float = SPACING
) -> list[DecoderSpec]:
    """`n` neighbouring rungs whose middle is the one nearest to the target, smallest first.

    Near the foot of the ladder the window is moved up, so that `n` models always come back. Dense and MoE templates
    give the same shapes; a target counts the parameters of the dense model (attention, feed-forward, norms).

    Raises:
        InputError: if the target is not positive, n is less than 1, or no rung is that large.
    """
    if not 0 < target_active_params <= MAXIMUM_PARAMS:
        raise InputError(f"target_active_params is {target_active_params:g}; it must be in (0, {MAXIMUM_PARAMS:g}].")
    if n < 1:
        raise InputError(f"n is {n}; it must be at least 1.")
    reach = max(target_active_params, dense_params(architecture(template, d_model=_widths(template)[0], n_layers=2)))
    rungs = ladder(template, largest=reach * spacing ** (n + 3), spacing=spacing)
    nearest = min(range(len(rungs)), key=lambda i: abs(math.log(dense_params(rungs[i]) / target_active_params)))
    first = max(0, nearest - (n - 1) // 2)
    return rungs[first : first + n]


def nearest(template: Template, params_active: float, n: int, *, with_embedding: bool = False) -> list[DecoderSpec]:
    """The `n` models of the family that are nearest to a size, the nearest first; they need not be rungs.

    Near in the parameters of the dense model (attention, feed-forward, norms), in aspect and in the ratio of d_ff to
    d_model, as the ladder weighs them. At least the smallest model comes back.

    Args:
        template: the family.
        params_active: size to be near.
        n: how many models at most.
        with_embedding: whether the size holds embedding and head as well.
    """
    dense = replace(template, name="", experts=None, depth_routing=None, granularities=_granularities(template))
    matrices = (1 if template.tied_head else 2) * with_embedding
    found: list[tuple[float, int, int, int]] = []
    for d_model in _widths(dense):
        target = params_active - matrices * template.vocab_size * d_model
        if target < _layer_params(dense, d_model)[0] / 2:
            break
        found += _shapes_near(dense, [d_model], target)
    shapes = [(d_model, n_layers) for _, _, d_model, n_layers in sorted(found)[:n]] or [(_widths(dense)[0], 2)]
    return [architecture(template, d_model=d_model, n_layers=n_layers) for d_model, n_layers in shapes]


def neighbour(template: Template, spec: DecoderSpec, steps: int, spacing: float = SPACING) -> DecoderSpec | None:
    """The rung `steps` above (or, if negative, below) `spec`; None beyond the foot of the ladder."""
    size = dense_params(spec)
    rungs = ladder(template, largest=size * spacing ** (abs(steps) + 3), spacing=spacing)
    here = min(range(len(rungs)), key=lambda i: abs(math.log(dense_params(rungs[i]) / size)))
    return rungs[here + steps] if here + steps >= 0 else None


def expected_optimum(flops: float, *, tokens_per_param: float = 20.0, template: Template | None = None) -> float:
    """Active non-embedding parameters at which a first isoFLOP grid should be centred: a prior, not a law.

    Solves flops = training FLOPs per token × tokens_per_param × parameters. 20 tokens a parameter is the rule of thumb
    for BPE text at large budgets (Hoffmann et al. 2022, arXiv 2203.15556); byte tokens and tiny budgets want more.
    With a template the FLOPs are the exact ones of its rungs (interpolated in log space). Without, they are 6 per
    parameter, and the answer is some 25% too large at 100K parameters, where attention scores and head weigh.

    Raises:
        InputError: if flops or tokens_per_param is not positive.
    """
    if not 0 < flops < math.inf:
        raise InputError(f"flops is {flops:g}; it must be positive and finite.")
    if not 0 < tokens_per_param < math.inf:
        raise InputError(f"tokens_per_param is {tokens_per_param:g}; it must be positive and finite.")
    rough = math.sqrt(flops / (6 * tokens_per_param))
    if template is None:
        return rough
    rungs = ladder(template, largest=max(rough, 1e5) * 8)
    sizes = [math.log(dense_params(spec)) for spec in rungs]
    costs = [
        math.log(count(spec).training_flops_per_token * tokens_per_param) + size
        for spec, size in zip(rungs, sizes, strict=True)
    ]
    return math.exp(_interpolate(math.log(flops), costs, sizes))


def dense_params(spec: DecoderSpec) -> int:
    """Active non-embedding parameters of the dense model with this shape: the size of a rung."""
    plain = spec.experts is None and spec.depth_routing is None
    return _active_params(spec if plain else replace(spec, experts=None, depth_routing=None))


@lru_cache(maxsize=16384)
def _active_params(spec: DecoderSpec) -> int:
    return count(spec).params_active


def _head_dim(template: Template, d_model: int) -> int:
    if template.head_dim is not None:
        return template.head_dim
    if template.multiple is not None and template.multiple >= 64:
        return 128 if d_model >= 2048 and d_model % 128 == 0 else 64
    return 16 if d_model < 128 else 32 if d_model < 256 else 64


def _ideal_d_ff(template: Template, d_model: int) -> float:
    return (8 / 3 if template.activation == "swiglu" else 4) * d_model


def _granularities(template: Template) -> tuple[int, ...]:
    return (template.width_multiple // template.expert_multiple,)


def _next_power(size: float) -> float:
    """The power of ten that is at least `size`: keeps the cache of ladders small."""
    return min(10.0 * MAXIMUM_PARAMS, 10.0 ** math.ceil(math.log10(max(size, 1e5))))


@lru_cache(maxsize=1024)
def _widths(template: Template) -> tuple[int, ...]:
    """d_model of the ladder: multiples of 16 below 128, of 32 below 256, of 64 from there; whole groups of heads, and
    multiples of what the template asks for."""
    widths, width = [], 0
    while width < 2**17:
        step = 16 if width < 128 else 32 if width < 256 else 64 if width < 8192 else 512
        width += step
        group = _head_dim(template, width) * template.queries_per_kv
        if width >= MINIMUM_WIDTH and width % math.lcm(group, template.multiple or 1) == 0:
            widths.append(width)
    if not widths:
        raise InputError(
            f"head_dim {template.head_dim} × queries_per_kv {template.queries_per_kv} divides no width of the ladder"
            + (f" that is a multiple of {template.multiple}; use less." if template.multiple else "; use less.")
        )
    return tuple(widths)


@lru_cache(maxsize=128)
def _rungs(dense: Template, spacing: float, largest: float) -> tuple[tuple[int, int, int], ...]:
    """(active parameters, d_model, n_layers) of every rung up to `largest`."""
    return tuple(_climb(dense, spacing, largest))


def _climb(dense: Template, spacing: float, largest: float) -> Iterator[tuple[int, int, int]]:
    widths = _widths(dense)
    width = widths[0]
    base = previous = _layer_params(dense, width)[0] + _layer_params(dense, width)[1]
    yield base, width, 2
    target: float = base
    while previous < largest and target < 4 * largest:
        target *= spacing
        if target < previous * spacing**0.5:
            continue
        near = _shapes_near(dense, [w for w in widths if w >= width], target)
        found = [shape for shape in near if shape[1] >= previous * spacing**0.5]
        if found:
            _, previous, width, n_layers = min(found)
            yield previous, width, n_layers


def _shapes_near(dense: Template, widths: list[int], target: float) -> Iterator[tuple[float, int, int, int]]:
    """(penalty, active parameters, d_model, n_layers) of the shapes whose size brackets the target.

    The penalty is the sum of squares of the log deviations from the target (scale: 7%), from the aspect rule (a half)
    and from the ideal d_ff (a quarter).
    """
    for d_model in widths:
        one, more, d_ff = _layer_params(dense, d_model)
        if one > 2 * target:
            break
        depth = max(2, math.floor(1 + (target - one) / more))
        ideal_depth = max(1.0, dense.depth * d_model / aspect(d_model))
        if not 1 / 4 < depth / ideal_depth < 8:
            continue
        for n_layers in (depth, depth + 1):
            size = one + (n_layers - 1) * more
            penalty = (
                (math.log(size / target) / math.log(1.07)) ** 2
                + (math.log(n_layers / ideal_depth) / math.log(1.5)) ** 2
                + (math.log(d_ff / _ideal_d_ff(dense, d_model)) / math.log(1.25)) ** 2
            )
            yield penalty, size, d_model, n_layers


@lru_cache(maxsize=8192)
def _layer_params(dense: Template, d_model: int) -> tuple[int, int, int]:
    """Active parameters of the one-block model, of each further block, and d_ff."""
    specs = [architecture(dense, d_model=d_model, n_layers=n) for n in (1, 2)]
    one, two = (dense_params(spec) for spec in specs)
    return one, two - one, specs[0].feed_forward.d_ff


def _interpolate(x: float, xs: list[float], ys: list[float]) -> float:
    """y at x on the line through the neighbouring points; extrapolates from the outermost two."""
    upper = next((i for i in range(1, len(xs)) if xs[i] >= x), len(xs) - 1)
    slope = (ys[upper] - ys[upper - 1]) / (xs[upper] - xs[upper - 1])
    return ys[upper] + slope * (x - xs[upper])
