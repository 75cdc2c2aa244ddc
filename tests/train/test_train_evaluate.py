import math

import numpy as np
import pytest
import torch

from isoflop.data import TokenData, evaluation_windows
from isoflop.errors import InputError
from isoflop.nn import Decoder
from isoflop.train import evaluate, measure
from isoflop.train.distributed import Ranks


@pytest.fixture
def windows(data_dir):
    return evaluation_windows(TokenData(data_dir), context=16, tokens=16 * 20)


def window_losses(model, windows):
    """Each window on its own, token by token."""
    losses = []
    for window in windows:
        logits = model(torch.from_numpy(window[None, :-1].copy())).logits_BTV[0].double()
        chosen = logits.log_softmax(-1)[torch.arange(16), torch.from_numpy(window[1:].copy())]
        losses.append(-chosen.mean().item())
    return losses


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_loss_and_its_standard_error(request, windows, kind, batch_size):
    model = Decoder(request.getfixturevalue(kind))
    with torch.no_grad():
        losses = window_losses(model, windows)
    loss, error = evaluate(model, windows, batch_size=batch_size)
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(len(losses)), abs=1e-5)


def test_expert_choice_always_sees_full_batches(expert_choice, windows):
    """The last batch is filled up with the first windows, and these count once."""
    model = Decoder(expert_choice)
    filled = np.concatenate([windows, windows[:4]])
    losses = []
    with torch.no_grad():
        for start in (0, 8, 16):
            batch = torch.from_numpy(filled[start : start + 8])
            loss_BT = torch.nn.functional.cross_entropy(
                model(batch[:, :-1]).logits_BTV.transpose(1, 2), batch[:, 1:], reduction="none"
            )
            losses += loss_BT.mean(1).tolist()
    loss, _ = evaluate(model, windows, batch_size=8)
    assert loss == pytest.approx(np.mean(losses[:20]), abs=1e-5)


def test_statistics_of_the_experts(moe, windows):
    result = measure(Decoder(moe), windows, batch_size=8)
    assert [sum(load_X) for load_X in result.load_LX] == pytest.approx([1, 1], abs=1e-5)
    assert result.load_max == pytest.approx(8 * max(max(load_X) for load_X in result.load_LX))
    assert 0 < result.router_entropy <= math.log(8)
    assert result.dropped_share == 0


def test_mode_is_restored_and_no_gradient_kept(moe, windows):
    model = Decoder(moe).train()
    evaluate(model, windows, batch_size=8)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_one_window_has_no_standard_error_and_none_is_an_error(dense, windows):
    assert math.isnan(evaluate(Decoder(dense), windows[:1], batch_size=8)[1])
    with pytest.raises(InputError, match="there are none"):
        evaluate(Decoder(dense), windows[:0], batch_size=8)


def test_the_public_name_is_the_function_whatever_was_imported_before():
    """A lazy name that is also a submodule's would turn into the module once something imports that."""
    import pkgutil

    import isoflop.train

    submodules = {module.name for module in pkgutil.iter_modules(isoflop.train.__path__)}
    assert not submodules & set(isoflop.train._LAZY)


@pytest.mark.parametrize("kind", ["dense", "moe", "expert_choice"])
def test_processes_that_share_the_batches_get_what_one_gets(request, windows, kind):
    """Each process's sum_ first leaves its own part; the parts add up to what one process has, bit for bit."""
    model = Decoder(request.getfixturevalue(kind), seed=1)
    parts = []

    class Part(Ranks):
        def sum_(self, tensor):
            parts.append((self.rank, tensor.clone()))

    class Whole(Ranks):
        def sum_(self, tensor):
            tensor.zero_()
            for part in sums[len(seen)]:
                tensor += part
            seen.append(1)

    seen = []
    alone = measure(model, windows, batch_size=4)
    for rank in range(3):
        measure(model, windows, batch_size=4, ranks=Part(rank, 3))
    sums = list(zip(*[[tensor for owner, tensor in parts if owner == rank] for rank in range(3)], strict=True))
    for part in sums[0]:
        assert 0 < (part != 0).sum() < len(windows)
    assert measure(model, windows, batch_size=4, ranks=Whole(1, 3)) == alone


@torch.inference_mode()
def evaluated_for_inference(model, windows):
    return measure(model, windows, batch_size=8)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_training_goes_on_after_an_evaluation_in_inference_mode(request, windows, kind):
    spec = request.getfixturevalue(kind)
    model, untouched = Decoder(spec, seed=1), Decoder(spec, seed=1)
    evaluated_for_inference(model, windows)
    tokens = torch.from_numpy(windows[:4, :-1].copy())
    for each in (model, untouched):
        each.train()
        each(tokens).logits_BTV.square().mean().backward()
    for one, other in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
