"""Matrix products of row groups, each with its own matrix: the arithmetic of the experts.

Shapes: M rows grouped by expert, X experts, I input width, O output width.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from isoflop.nn import _onednn
from isoflop.nn._plain import are_plain

_ROW_MAJOR: Final = 101  # of <cblas.h>
_PLAIN: Final = 111
_TRANSPOSED: Final = 112
_ROUND: Final = 32
"""Numbers of rows that oneDNN meets are multiples of this."""
SLACK: Final = _ROUND - 1
"""Rows beyond the last that let every number of rows be rounded up."""
_ITEM: Final = 4
"""Bytes of a float32."""


def grouped_matmul(x_MI: Tensor, w_XIO: Tensor, ends_X: Tensor) -> Tensor:
    """Multiply the rows of each expert with its matrix, [M, O]; expert x owns rows ends[x−1] to ends[x].

    In bfloat16 on CUDA, with widths that are multiples of 8, this is `torch.nn.functional.grouped_mm`: one kernel and
    no host synchronisation (elsewhere grouped_mm is itself a loop). Otherwise `RowGroups`, which off the CPU waits for
    the counts.
    """
    if x_MI.is_cuda and x_MI.dtype == torch.bfloat16 and not (w_XIO.shape[1] % 8 or w_XIO.shape[2] % 8):
        return F.grouped_mm(x_MI, w_XIO, offs=ends_X)
    product: Tensor = _GroupedMatmul.apply(x_MI, w_XIO, ends_X)
    return product


def sizes_of(ends_X: Tensor) -> list[int]:
    """Rows of each expert, as numbers; off the CPU this waits for them."""
    ends: Sequence[int] = ends_X.tolist()
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class RowGroups:
    """Products of consecutive groups of rows, each with a matrix of its own, written where they belong.

    In float32 on x86 a product is one call of MKL's batched sgemm, which torch's own library holds but offers for
    equal sizes alone (`bmm`): threads then share out whole products instead of dividing each among them, and there is
    one call instead of hundreds. Large products are oneDNN's where it is the faster one. Elsewhere one `mm` follows the
    other.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes` are the rows of each group; a group may have none."""
        self.sizes = list(sizes)
        self.n_rows = sum(self.sizes)
        sizes_X = np.asarray(self.sizes, np.int64)
        self._filled = np.flatnonzero(sizes_X)
        firsts = np.cumsum(sizes_X) - sizes_X
        self._firsts, self._starts = firsts.tolist(), firsts[self._filled]
        self._rows = _Numbers(sizes_X[self._filled].astype(np.int32))
        self._same: dict[tuple[type, int | float], _Numbers] = {}

    def times(self, x_MI: Tensor, w_XIO: Tensor, *, out: Tensor) -> Tensor:
        """out[m] = x[m] · w[group of m], [M, O]; `w` may be transposed (`.mT`).

        `x` may have more rows than the groups: oneDNN then computes a few of them along, so as to meet fewer shapes.
        """
        if self._is_for_onednn(w_XIO, x_MI, out):
            for size, start, w in zip(self.sizes, self._firsts, w_XIO.unbind(), strict=True):
                if size:
                    end = start + -(-size // _ROUND) * _ROUND
                    x = x_MI[start : end if end <= x_MI.shape[0] else start + size]
                    out[start : start + size].copy_(_onednn.product(x, w.t())[:size])
            return out
        x_MI = x_MI[: self.n_rows]
        shape = (self._rows, self._all(w_XIO.shape[2]), self._all(w_XIO.shape[1]))
        rows, matrices = (self._starts, x_MI.stride(0)), (self._filled, w_XIO.stride(0))
        if self._batch(shape, (x_MI, *rows), (w_XIO, *matrices), (out, self._starts, out.stride(0))):
            return out
        for x, w, y in zip(x_MI.split(self.sizes), w_XIO.unbind(), out.split(self.sizes), strict=True):
            if x.shape[0]:
                torch.mm(x, w, out=y)
        return out

    def outer(self, x_MI: Tensor, g_MO: Tensor, *, out: Tensor) -> Tensor:
        """out[group] = Σ_m x[m] ⊗ g[m] over the group's rows, [X, I, O]."""
        if self._is_for_onednn(out, x_MI, g_MO):
            for size, start, each in zip(self.sizes, self._firsts, out.unbind(), strict=True):
                middle, end = start + size // _ROUND * _ROUND, start + size
                if middle > start:
                    each.copy_(_onednn.product(x_MI[start:middle].t(), g_MO[start:middle].t()))
                else:
                    each.zero_()
                if end > middle:
                    each.addmm_(x_MI[middle:end].t(), g_MO[middle:end])
            return out
        shape = (self._all(x_MI.shape[1]), self._all(g_MO.shape[1]), self._rows)
        rows, other = (self._starts, x_MI.stride(0)), (self._starts, g_MO.stride(0))
        if self._batch(shape, (x_MI.t(), *rows), (g_MO, *other), (out, self._filled, out.stride(0))):
            for group in np.flatnonzero(np.asarray(self.sizes) == 0):
                out[group].zero_()
            return out
        for x, g, each in zip(x_MI.split(self.sizes), g_MO.split(self.sizes), out.unbind(), strict=True):
            if x.shape[0]:
                torch.mm(x.t(), g, out=each)
            else:
                each.zero_()
        return out

    def _is_for_onednn(self, w_XIO: Tensor, *rows: Tensor) -> bool:
        """Whether oneDNN is faster at products of the mean group with such matrices."""
        return (
            self.n_rows * w_XIO.shape[1] * w_XIO.shape[2] >= _onednn.WORTH * max(1, len(self._filled))
            and _onednn.is_preferred()
            and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (w_XIO, *rows))
            and not is_watched()
        )

    def _all(self, number: int | float) -> "_Numbers":
        """The number once for every filled group."""
        key = type(number), number  # 1 equals 1.0
        if key not in self._same:
            kind = np.int32 if isinstance(number, int) else np.float32
            self._same[key] = _Numbers(np.full(len(self._filled), number, kind))
        return self._same[key]

    def _batch(self, shape: tuple["_Numbers", ...], *matrices: tuple[Tensor, np.ndarray, int]) -> bool:
        """C_i = A_i · B_i for every filled group i; False, with nothing done, where MKL cannot take them.

        `matrices` are A, B and C: each a tensor, where in it group i stands, and how many elements places are apart.
        """
        if not can_batch(*(tensor for tensor, _, _ in matrices)):
            return False
        layouts = [_layout(tensor) for tensor, _, _ in matrices]
        if None in layouts or layouts[2][0] != _PLAIN:  # type: ignore[index]
            return False
        a, b, c = (_Numbers(tensor.data_ptr() + place * (step * _ITEM)) for tensor, place, step in matrices)
        (order_a, lda), (order_b, ldb), (_, ldc) = (map(self._all, layout) for layout in layouts if layout is not None)
        arguments = (order_a, order_b, *shape, self._all(1.0), a, lda, b, ldb, self._all(0.0), c, ldc, self._all(1))
        call = _sgemm_batch()
        assert call is not None
        *pointers, last = [each.pointer for each in arguments]
        call(_ROW_MAJOR, *pointers, len(self._filled), last)
        return True


class _Numbers:
    """An array and where it stands."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.pointer = _pointer(array)


def _layout(tensor: Tensor) -> tuple[int, int] | None:
    """How BLAS is told of the last two dimensions: plain or transposed, and elements between rows; None: it cannot be.

    A dimension of one element may have any stride; BLAS wants rows no nearer to each other than they are long.
    """
    (rows, columns), (down, across) = tensor.shape[-2:], tensor.stride()[-2:]
    if across == 1 or columns == 1:
        down = max(down, columns) if rows == 1 else down
        return (_PLAIN, down) if down >= columns else None
    if down == 1 or rows == 1:
        return (_TRANSPOSED, across) if across >= rows else None
    return None


class LoneRows:
    """Products of single rows, each with a matrix of its own, for fewer rows than there are matrices.

    The matrices must stay where they are while it lives, and each call overwrites what the one before returned.
    """

    def __init__(self, w_XIO: Tensor, rows_M: np.ndarray) -> None:
        """Product m takes row rows[m] of x; a call may make the first of them alone. Only where `can_take` says so."""
        call = _sgemm_batch()
        assert call is not None
        (_, length, width), most = w_XIO.shape, len(rows_M)
        self._call, self._w_XIO, self._rows_M = call, w_XIO.detach(), rows_M
        self._out_MO = w_XIO.new_empty(most, width)
        self._offsets_M = rows_M * (length * _ITEM)
        self._a, self._b = np.empty(most, np.int64), np.empty(most, np.int64)
        self._c = self._out_MO.data_ptr() + np.arange(most) * (width * _ITEM)
        self._count = ctypes.c_int(most)
        numbers = (_PLAIN, _PLAIN, 1, width, length, length, max(w_XIO.stride(1), width), width)
        sizes = [ctypes.byref(ctypes.c_int(number)) for number in numbers]
        one, zero = (ctypes.byref(ctypes.c_float(number)) for number in (1.0, 0.0))
        a, b, c = map(_pointer, (self._a, self._b, self._c))
        count = ctypes.byref(self._count)
        self._arguments = (_ROW_MAJOR, *sizes[:5], one, a, sizes[5], b, sizes[6], zero, c, sizes[7], 1, count)

    @staticmethod
    def can_take(*tensors: Tensor) -> bool:
        """Whether there is such a product for these rows and matrices."""
        layouts = [_layout(tensor) for tensor in tensors]
        return can_batch(*tensors) and all(layout is not None and layout[0] == _PLAIN for layout in layouts)

    def __call__(self, x_NI: Tensor, which_M: np.ndarray) -> Tensor:
        """out[m] = x[rows[m]] · w[which[m]], [M, O]."""
        count = len(which_M)
        x_NI = x_NI.contiguous()
        assert x_NI.dtype == torch.float32
        assert x_NI.shape[1] == self._w_XIO.shape[1]
        assert x_NI.shape[0] > self._rows_M[count - 1]
        np.add(self._offsets_M[:count], x_NI.data_ptr(), out=self._a[:count])
        np.multiply(which_M, self._w_XIO.stride(0) * _ITEM, out=self._b[:count])
        self._b[:count] += self._w_XIO.data_ptr()
        self._count.value = count
        self._call(*self._arguments)
        return self._out_MO[:count]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def is_watched() -> bool:
    """Whether operations are compiled or counted (`torch.utils.flop_counter`): then all must be torch's own."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def can_batch(*tensors: Tensor) -> bool:
    """Whether there is a batched product for these tensors: not empty, on the CPU, in float32, torch's own."""
    return not is_watched() and are_plain(*tensors) and _sgemm_batch() is not None


@cache
def _sgemm_batch() -> Callable[..., None] | None:
    """MKL's `cblas_sgemm_batch` in torch's library; None where torch was built with another library."""
    if "BLAS_INFO=mkl" not in torch.__config__.show():
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).cblas_sgemm_batch
    except (OSError, AttributeError):
        return None
    found.restype = None
    call: Callable[..., None] = found
    return call


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, w_XIO: Tensor, ends_X: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, w_XIO, ends_X)
        return RowGroups(sizes_of(ends_X)).times(x_MI, w_XIO, out=x_MI.new_empty(x_MI.shape[0], w_XIO.shape[2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_MI, w_XIO, ends_X = ctx.saved_tensors
        groups, g_MO = RowGroups(sizes_of(ends_X)), gradients[0].contiguous()
        dx_MI = dw_XIO = None
        if ctx.needs_input_grad[0]:
            dx_MI = groups.times(g_MO, w_XIO.mT, out=x_MI.new_empty(x_MI.shape))
        if ctx.needs_input_grad[1]:
            dw_XIO = groups.outer(x_MI, g_MO, out=w_XIO.new_empty(w_XIO.shape))
        return dx_MI, dw_XIO, None
