"""The product of a few rows equals torch's, whatever their number and shape."""

import pytest
import torch
import torch.nn.functional as F

from isoflop.nn import linear as few
from isoflop.nn.linear import linear


@pytest.mark.parametrize("w_shape", [(96, 32), (32, 96), (32, 32)])
@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (3, 1), (2, 2), (8,), (9,), (1, 1, 1)])
@pytest.mark.parametrize("intel", [True, False])
def test_few_rows_equal_torchs_product(rows, w_shape, intel, monkeypatch):
    monkeypatch.setattr(few, "_LARGE", 0)
    monkeypatch.setattr(few, "_is_intel", lambda: intel)
    generator = torch.Generator().manual_seed(0)
    w_FD = torch.randn(w_shape, generator=generator, dtype=torch.float64)
    x = torch.randn(*rows, w_shape[1], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = linear(x, w_FD)
        torch.testing.assert_close(y, F.linear(x, w_FD), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous()


def test_with_gradients_it_is_torchs_product():
    w_FD, x = torch.randn(8, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    linear(x, w_FD).sum().backward()
    torch.testing.assert_close(w_FD.grad, x.detach().sum(0).expand(8, 4))
    torch.testing.assert_close(x.grad, w_FD.detach().sum(0).expand(2, 4))


def test_autocast_is_obeyed():
    w_FD, x = torch.randn(8, 4), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w_FD).dtype == F.linear(x, w_FD).dtype == torch.bfloat16
