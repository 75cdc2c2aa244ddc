"""Products by whichever library are torch's products."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from isoflop.nn import _onednn
from isoflop.nn import linear as module
from isoflop.nn.linear import linear


def test_with_gradients_it_is_torchs_product():
    w_FD, x = torch.randn(8, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    linear(x, w_FD).sum().backward()
    torch.testing.assert_close(w_FD.grad, x.detach().sum(0).expand(8, 4))
    torch.testing.assert_close(x.grad, w_FD.detach().sum(0).expand(2, 4))


def test_autocast_is_obeyed():
    w_FD, x = torch.randn(8, 4), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w_FD).dtype == F.linear(x, w_FD).dtype == torch.bfloat16


@pytest.fixture
def by_onednn(monkeypatch):
    """Every product that oneDNN can do, it does."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(_onednn, "is_preferred", lambda: True)
    monkeypatch.setattr(_onednn, "WORTH", 0)
    for name in ("_MANY", "_WIDE"):
        monkeypatch.setattr(module, name, 0)
    ran = []
    apply = module._Product.apply
    monkeypatch.setattr(module._Product, "apply", lambda *tensors: ran.append(1) or apply(*tensors))
    return ran


@pytest.mark.parametrize("w_shape", [(96, 32), (32, 96), (1, 32), (32, 1)])
@pytest.mark.parametrize("layout", ["rows", "columns", "expanded"])
def test_onednn_computes_what_torch_does(by_onednn, w_shape, layout):
    def laid(*shape):
        if layout == "columns":
            return torch.randn(shape[-1], *shape[:-1]).movedim(0, -1)
        return torch.randn(*shape[:-1], 1).expand(shape) if layout == "expanded" else torch.randn(shape)

    x, w_FD, g = laid(3, 7, w_shape[1]), laid(*w_shape), laid(3, 7, w_shape[0])
    x, w_FD = x.detach().requires_grad_(), w_FD.detach().requires_grad_()
    found = []
    for product in (linear, F.linear):
        y = product(x, w_FD)
        first = torch.autograd.grad(y, (x, w_FD), g, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, w_FD))
        found.append((y, *first, *second))
    for own, torchs in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-4)
    assert by_onednn


def test_onednn_is_for_float32_without_autocast(by_onednn):
    x, w_FD = torch.randn(4, 8), torch.randn(6, 8)
    assert linear(x.double(), w_FD.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w_FD).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        linear(x, w_FD)
    assert counter.get_total_flops() == 2 * 4 * 6 * 8
    assert not by_onednn
    linear(x, w_FD)
    assert len(by_onednn) == 1


def test_onednn_makes_no_gradient_that_nobody_wants(by_onednn):
    x, w_FD = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    linear(x, w_FD).sum().backward()
    assert len(by_onednn) == 2
    torch.testing.assert_close(x.grad, w_FD.sum(0).expand(4, 8))
