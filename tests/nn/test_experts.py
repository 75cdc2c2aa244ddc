"""The blocked experts of the CPU against the plain path, their grouped products, and the threads that work on them."""

import copy
import itertools
import os
import signal
import threading
import time

import pytest
import torch
from torch import Tensor

from isoflop.nn import MoE, _onednn, experts, grouped
from isoflop.nn._threads import spread, threads_to_spread
from isoflop.nn.grouped import RowGroups
from isoflop.spec import ExpertsSpec, RouterSpec

SIZES = ([3, 0, 5, 1], [7], [0, 0, 4], [1, 1, 1, 1, 1], [33, 0, 64, 31])


@pytest.fixture(params=["batched", "looped", "onednn"])
def product(request, monkeypatch):
    """All ways of multiplying; the batched one where torch has MKL."""
    monkeypatch.setattr(_onednn, "is_preferred", lambda: request.param == "onednn")
    monkeypatch.setattr(grouped._onednn, "WORTH", 0)
    if request.param == "onednn":
        if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
            pytest.skip("torch has no oneDNN here")
    elif request.param == "looped":
        monkeypatch.setattr(grouped, "_sgemm_batch", lambda: None)
    elif grouped._sgemm_batch() is None:
        pytest.skip("torch has no MKL here")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def experts_of(sizes: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_groups(product, sizes, dtype):
    torch.manual_seed(0)
    m, x, i, o = sum(sizes), len(sizes), 6, 10
    x_MI, w_XIO, g_MO = (torch.randn(*shape).to(dtype) for shape in ((m, i), (x, i, o), (m, o)))
    groups, which = RowGroups(sizes), experts_of(sizes)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    out = groups.times(x_MI, w_XIO, out=torch.full((m, o), torch.nan, dtype=dtype))
    torch.testing.assert_close(out, torch.einsum("mi,mio->mo", x_MI, w_XIO[which]), **tolerance)
    out = groups.times(g_MO, w_XIO.mT, out=torch.full((m, i), torch.nan, dtype=dtype))
    torch.testing.assert_close(out, torch.einsum("mo,mio->mi", g_MO, w_XIO[which]), **tolerance)
    out = groups.outer(x_MI, g_MO, out=torch.full((x, i, o), torch.nan, dtype=dtype))
    expected = torch.zeros(x, i, o, dtype=dtype).index_add(0, which, x_MI[:, :, None] * g_MO[:, None, :])
    torch.testing.assert_close(out, expected, **tolerance)


@pytest.mark.parametrize("sizes", SIZES)
def test_products_take_columns_of_wider_rows(product, sizes):
    m, x = sum(sizes), len(sizes)
    wide, w_XIO, which = torch.randn(m, 20), torch.randn(x, 6, 4), experts_of(sizes)
    out = RowGroups(sizes).times(wide[:, 8:14], w_XIO, out=torch.empty(m, 4))
    torch.testing.assert_close(out, torch.einsum("mi,mio->mo", wide[:, 8:14], w_XIO[which]), rtol=1e-5, atol=1e-5)
    out = RowGroups(sizes).outer(wide[:, :6], wide[:, 6:10], out=torch.empty(x, 6, 4))
    expected = torch.zeros(x, 6, 4).index_add(0, which, wide[:, :6, None] * wide[:, None, 6:10])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("i", "o"), [(1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("layout", ["rows", "columns", "expanded"])
def test_products_of_any_layout(product, i, o, layout):
    sizes = [3, 0, 1, 4]
    m, x, which = 8, 4, experts_of([3, 0, 1, 4])

    def laid(*shape):
        if layout == "columns":
            return torch.randn(*shape[:-2], shape[-1], shape[-2]).mT
        return torch.randn(*shape[:-1], 1).expand(shape) if layout == "expanded" else torch.randn(shape)

    x_MI, w_XIO, g_MO = laid(m, i), laid(x, i, o), laid(m, o)
    expected = torch.einsum("mi,mio->mo", x_MI, w_XIO[which])
    for out in (torch.empty(m, o), torch.empty(o, m).t()):
        torch.testing.assert_close(RowGroups(sizes).times(x_MI, w_XIO, out=out), expected, rtol=1e-5, atol=1e-5)
    expected = torch.zeros(x, i, o).index_add(0, which, x_MI[:, :, None] * g_MO[:, None, :])
    for out in (torch.empty(x, i, o), torch.empty(x, o, i).mT):
        torch.testing.assert_close(RowGroups(sizes).outer(x_MI, g_MO, out=out), expected, rtol=1e-5, atol=1e-5)
    x_MI.requires_grad_(layout == "rows")
    ends_X = torch.tensor(sizes).cumsum(0).int()
    torch.testing.assert_close(
        grouped.grouped_matmul(x_MI, w_XIO, ends_X),
        torch.einsum("mi,mio->mo", x_MI, w_XIO[which]),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("activation", "kind", "granularity", "width"),
    [
        *itertools.product(("swiglu", "gelu", "relu"), ("token_choice", "expert_choice"), (1, 4), (32,)),
        ("swiglu", "lone_gate_after_norm", 1, 32),
        ("swiglu", "token_choice", 4, 24),  # experts of 6: silu of short strided rows
    ],
)
@pytest.mark.parametrize("block", [1, 2**9, 2**20])
def test_blocks_compute_what_the_plain_path_does(
    product, monkeypatch, threads, activation, kind, granularity, width, block
):
    monkeypatch.setattr(experts, "_BLOCK", block)
    monkeypatch.setattr(experts, "_LITTLE", 0)  # so that threads share even this
    threads(2)
    torch.manual_seed(0)
    gate_last = kind == "lone_gate_after_norm"
    router = RouterSpec(kind="token_choice" if gate_last else kind, balance_weight=0.1)
    spec = ExpertsSpec(granularity=granularity, expansion_rate=4, output_norm=gate_last, router=router)
    assert spec.gates_after_norm == gate_last
    layer = MoE(d_model=12, d_ff=width, experts=spec, activation=activation)
    x_BTD, g_BTD = torch.randn(4, 16, 12, requires_grad=True), torch.randn(4, 16, 12)
    found = {}
    for name in ("blocks", "plain"):
        if name == "plain":
            monkeypatch.setattr("isoflop.nn.moe.experts_in_blocks", lambda *a: layer._in_expert_order(*a[:-1]))
        y_BTD, statistics = layer(x_BTD)
        loss = (y_BTD * g_BTD).sum() + statistics.auxiliary_loss
        found[name] = (y_BTD, *torch.autograd.grad(loss, (x_BTD, *layer.parameters())))
    for own, plain in zip(found["blocks"], found["plain"], strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


def test_blocks_do_not_depend_on_threads(threads, monkeypatch):
    monkeypatch.setattr(experts, "_LITTLE", 0)
    layer = MoE(d_model=16, d_ff=64, experts=ExpertsSpec(granularity=4, expansion_rate=4))
    x_BTD = torch.randn(2, 64, 16, requires_grad=True)
    found = []
    for number in (1, 2, 3):
        threads(number)
        y_BTD, _ = layer(x_BTD)
        found.append((y_BTD.detach(), *torch.autograd.grad(y_BTD.square().sum(), (x_BTD, *layer.parameters()))))
    for other in found[1:]:
        for first, own in zip(found[0], other, strict=True):
            # up to the rounding of kernels that differ with the number of threads
            torch.testing.assert_close(own, first, rtol=1e-5, atol=1e-5 * float(first.abs().max().clamp_min(1)))


def test_blocks_are_shared_out_unless_one_expert_has_most(threads, monkeypatch):
    monkeypatch.setattr(experts, "_LITTLE", 0)
    threads(2)
    if threads_to_spread() == 1:
        pytest.skip("torch's threads cannot be told here")
    even = experts._blocks([100, 0, 90, 110, 100], 8, 8, 16)
    assert len(even) == 4
    assert [block.groups.n_rows for block in even] == sorted((block.groups.n_rows for block in even), reverse=True)
    covered = sorted((block.rows.start, block.rows.stop) for block in even)
    assert covered[0][0] == 0
    assert covered[-1][1] == 400
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
    assert len(experts._blocks([10, 0, 390, 0], 8, 8, 16)) == 1


@pytest.mark.filterwarnings("ignore:experts.granularity")  # so narrow, routing costs more than the experts
@pytest.mark.parametrize(("d_model", "activation"), [(12, "gelu"), (12, "swiglu"), (1, "swiglu")])
def test_experts_of_width_one_and_odd_layouts(d_model, activation):
    layer = MoE(d_model=d_model, d_ff=4, experts=ExpertsSpec(granularity=4, expansion_rate=2), activation=activation)
    layer.w_up.data, layer.w_down.data = (w.mT.contiguous().mT for w in (layer.w_up.data, layer.w_down.data))
    exact = copy.deepcopy(layer).double()
    x_BTD = torch.randn(d_model, 6, 2).mT.reshape(2, 6, d_model).requires_grad_()
    found = []
    for own, x in ((layer, x_BTD), (exact, x_BTD.detach().double().requires_grad_())):
        y_BTD, _ = own(x)
        found.append([y_BTD, *torch.autograd.grad(y_BTD.square().sum(), (x, *own.parameters()))])
        with torch.no_grad():
            found[-1].append(own.sample(x))
            found[-1].append(own.sample(x[:1, :1].expand(3, 1, d_model)))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", ["w_up", "w_down", "router.w_XD", "x"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(frozen):
    layer = MoE(d_model=12, d_ff=32, experts=ExpertsSpec(granularity=4, expansion_rate=4, output_norm=False))
    x_BTD = torch.randn(2, 5, 12, requires_grad=True)
    tensors = {"x": x_BTD, **dict(layer.named_parameters())}
    layer(x_BTD)[0].square().sum().backward()
    whole = {name: tensor.grad.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = None
    tensors[frozen].requires_grad_(False)
    layer(x_BTD)[0].square().sum().backward()
    assert tensors[frozen].grad is None
    for name, tensor in tensors.items():
        if name != frozen:
            torch.testing.assert_close(tensor.grad, whole[name])


def test_a_second_derivative_is_refused():
    layer = MoE(d_model=12, d_ff=32, experts=ExpertsSpec(granularity=4, expansion_rate=4, output_norm=False))
    x_BTD = torch.randn(1, 5, 12, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x_BTD)[0].square().sum(), x_BTD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("kind", ["token_choice", "expert_choice", "expert_choice_noncausal"])
def test_no_tokens_give_no_output(kind):
    layer = MoE(d_model=12, d_ff=32, experts=ExpertsSpec(granularity=2, expansion_rate=2, router=RouterSpec(kind=kind)))
    for shape in ((0, 4, 12), (2, 0, 12)):
        assert layer(torch.randn(shape))[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_thread_works_without_gradients(dtype, mode, threads, monkeypatch):
    monkeypatch.setattr(experts, "_LITTLE", 0)
    monkeypatch.setattr(experts, "_BLOCK", 1)
    threads(2)
    layer = MoE(d_model=12, d_ff=32, experts=ExpertsSpec(granularity=4, expansion_rate=4, output_norm=False)).to(dtype)
    x_BTD = torch.randn(4, 16, 12).to(dtype)
    plain = experts.spread
    meeting = threading.Barrier(min(2, threads_to_spread()))

    def together(pieces, work):
        def waiting(shared):
            meeting.wait(timeout=30)  # so that nobody takes all pieces before the others are there
            work(slowly(shared))

        assert len(pieces) > 4
        plain(pieces, waiting)

    def slowly(shared):
        for piece in shared:
            time.sleep(0.001)
            yield piece

    with mode():
        expected = layer(x_BTD)[0]
        monkeypatch.setattr(experts, "spread", together)
        torch.testing.assert_close(layer(x_BTD)[0], expected, rtol=1e-5, atol=1e-6)


def test_forward_without_gradients_keeps_nothing_for_the_backward(monkeypatch):
    layer = MoE(d_model=16, d_ff=64, experts=ExpertsSpec(granularity=4, expansion_rate=4, output_norm=False))
    x_BTD, kept = torch.randn(1, 8, 16, requires_grad=True), []
    apply = experts._Experts.apply
    monkeypatch.setattr(experts._Experts, "apply", lambda *a: kept.append(a[-1]) or apply(*a))
    assert layer(x_BTD)[0].grad_fn is not None
    with torch.no_grad():
        layer(x_BTD)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    layer(x_BTD.detach())
    assert kept == [True, False, False]


def test_rows_move_by_gathers_alone():
    layer = MoE(d_model=16, d_ff=64, experts=ExpertsSpec(granularity=4, expansion_rate=4, output_norm=False))
    x_BTD = torch.randn(2, 8, 16, requires_grad=True)
    names, moves = {}, {}
    loss = None
    for way in ("forward", "backward"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            if loss is None:
                loss = layer(x_BTD)[0].square().sum()
            else:
                loss.backward()
        ran = profile.key_averages(group_by_input_shape=True)
        names[way] = {event.key for event in ran}
        rows = [event for event in ran if event.key == "aten::index_select" and event.input_shapes[0] == [16, 16]]
        sums = [event for event in ran if event.key == "aten::_embedding_bag_forward_only"]
        moves[way] = sum(event.count for event in rows), sum(event.count for event in sums)
    # Backward gathers the input again, for it is not kept, and the gradient.
    assert moves == {"forward": (1, 1), "backward": (2, 1)}
    bad = ("index_put", "index_add", "scatter_add", "scatter_reduce", "embedding_bag_backward")
    assert not [name for each in names.values() for name in each if any(word in name for word in bad)]
    assert not [name for name in names["backward"] if "aten::cat" in name]


def test_spread_gives_every_piece_to_one_thread_that_works_alone(threads):
    threads(3)
    before = torch.get_num_threads()
    seen: list[tuple[int, int, bool]] = []
    meeting = threading.Barrier(min(3, threads_to_spread()))

    def work(pieces):
        meeting.wait(timeout=30)
        seen.extend((piece, torch.get_num_threads(), torch.is_grad_enabled()) for piece in pieces)

    spread(list(range(50)), work)
    assert sorted(piece for piece, _, _ in seen) == list(range(50))
    if threads_to_spread() > 1:
        assert {number for _, number, _ in seen} == {1}
    assert not any(graph for _, _, graph in seen)
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["calling", "other"])
def test_spread_raises_what_a_thread_raised(threads, where):
    threads(2)
    if threads_to_spread() == 1:
        pytest.skip("torch's threads cannot be told here")
    caller = threading.get_ident()
    meeting = threading.Barrier(2)

    def work(pieces):
        meeting.wait(timeout=30)
        if (threading.get_ident() == caller) == (where == "calling"):
            raise ValueError("broken piece")
        list(pieces)

    with pytest.raises(ValueError, match="broken piece"):
        spread([1, 2, 3, 4], work)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    spread([1, 2], list)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            spread([1, 2], list)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("router", [{}, {"renormalise": False}, {"balance": "bias"}, {"score_order": "topk_softmax"}])
@pytest.mark.parametrize(("granularity", "output_norm", "shared"), [(4, True, 0), (4, False, 1), (1, False, 0)])
def test_sampling_computes_what_the_forward_does(router, granularity, output_norm, shared):
    experts_spec = ExpertsSpec(
        granularity=granularity,
        expansion_rate=4,
        output_norm=output_norm,
        shared_experts=shared,
        router=RouterSpec(**router),
    )
    layer = MoE(d_model=12, d_ff=32, experts=experts_spec)
    if "balance" in router:
        layer.router.bias_X.normal_()
    with torch.no_grad():
        for shape in ((1, 1), (3, 1), (2, 5), (1, 400)):
            x_BTD = torch.randn(*shape, 12)
            torch.testing.assert_close(layer.sample(x_BTD), layer(x_BTD)[0], rtol=1e-5, atol=1e-6)
            wide = torch.randn(*shape, 24)[..., :12]  # rows with gaps
            torch.testing.assert_close(layer.sample(wide), layer(wide)[0], rtol=1e-5, atol=1e-6)


def test_sampling_takes_the_few_rows_path_where_it_can(monkeypatch):
    layer = MoE(d_model=12, d_ff=32, experts=ExpertsSpec(granularity=4, expansion_rate=4))
    ran = []
    called = experts.ExpertsOfFew.__call__
    monkeypatch.setattr(experts.ExpertsOfFew, "__call__", lambda *a: ran.append(1) or called(*a))
    with torch.no_grad():
        layer.sample(torch.randn(1, 2, 12))
        layer.double()
        layer.sample(torch.randn(1, 2, 12, dtype=torch.float64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_BTD = torch.randn(1, 2, 12)
            layer.float()
            assert layer.sample(x_BTD).dtype == layer(x_BTD)[0].dtype == torch.bfloat16
    x_BTD.requires_grad_()
    assert layer.sample(x_BTD).grad_fn is not None
    assert len(ran) == (1 if grouped._sgemm_batch() is not None else 0)
