"""The layer alone: `MoD` around any function of tokens."""

import pytest
import torch

from isoflop.errors import InputError
from isoflop.nn import MoD
from isoflop.spec import DepthRoutingSpec


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("routing", [{}, {"gate": "sigmoid"}, {"router": "fixed"}, {"sampled_by": "predictor"}])
def test_the_layer_alone_equals_a_loop_over_tokens(routing, causal):
    layer = MoD(
        8,
        DepthRoutingSpec(**{"capacity": 0.3} | routing),
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    x_BTD = torch.randn(3, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    if causal:
        layer.calibrate(torch.randn(20, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
        layer.causal = True
    scale = torch.arange(10, dtype=torch.float64)

    def f(x_BCD, places_BC):
        """A running sum over the kept tokens, and something of their positions."""
        return x_BCD.cumsum(1).sin() + scale[places_BC][..., None]

    y_BTD, statistics = layer(x_BTD, f)
    rows = []
    for x_TD in x_BTD:
        score_T, decision_T = layer.router.scores(x_TD[None], None) if layer.router.is_learned else (None, None)
        if not layer.router.is_learned:
            kept = [0, 3, 6]
        elif causal:
            kept = [t for t in range(10) if decision_T[0, t] > layer.router.threshold]
        else:
            kept = sorted(sorted(range(10), key=lambda t: -score_T[0, t].item())[:3])
        out, total = list(x_TD), torch.zeros(8, dtype=torch.float64)
        for t in kept:
            total = total + x_TD[t]
            gate = 1.0
            if layer.router.is_learned:
                gate = 2 * score_T[0, t].sigmoid() if routing.get("gate") == "sigmoid" else score_T[0, t]
            out[t] = x_TD[t] + gate * (total.sin() + t)
        rows.append(torch.stack(out))
    expected_BTD = torch.stack(rows)
    torch.testing.assert_close(y_BTD, expected_BTD)
    (mine,) = torch.autograd.grad(y_BTD.square().sum(), x_BTD, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected_BTD.square().sum(), x_BTD)
    torch.testing.assert_close(mine, theirs)
    assert 0 < statistics.kept_share < 0.7


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda layer: setattr(layer, "causal", True),
            "causal is true but .* thresholds are unset; run calibrate first",
        ),
        (lambda layer: layer(torch.zeros(4, 8), lambda x, _: x), r"x_BTD has shape \[4, 8\]"),
        (lambda layer: layer(torch.zeros(2, 4, 9), lambda x, _: x), r"x_BTD has shape \[2, 4, 9\]; .* 8\]"),
        (lambda layer: layer(torch.zeros(2, 4, 8), lambda x, _: None), "f returned NoneType; it must return a tensor"),
        (lambda layer: layer(torch.zeros(2, 4, 8), lambda x, _: x[:1]), r"f returned \[1, 2, 8\]; it must"),
        (lambda layer: layer.calibrate(torch.zeros(1, 16, 8)), "x_BTD holds 16 tokens; .* at least 32"),
        (lambda _: MoD(8, 0.5), r"spec is 0\.5; a MoD layer needs a DepthRoutingSpec"),
        (lambda _: MoD(8, DepthRoutingSpec(capacity=0.5, every=3)), "depth_routing.every is 3; it says which parts"),
        (lambda _: MoD(8, DepthRoutingSpec(capacity=0.5, router="stochastic")), "can be learned or fixed"),
    ],
)
def test_what_the_layer_alone_cannot_do(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(MoD(8, DepthRoutingSpec(capacity=0.5)))
