"""Sampling's inner step: one new token of every sequence, in as few operations as it takes.

At small sizes the number of operations is what a step costs, at large ones the reading of weights. So a step has code
of its own, and weights are arranged for it once for each call of `generate`: gains of norms are multiplied into the
matrices that follow, small matrices are copied so that a product runs along their rows, and large ones are reordered by
oneDNN where several rows meet them. It computes what the modules compute, up to rounding.

Shapes: B sequences, A sequences that a depth-routed block keeps, D d_model, H query heads, K KV heads, h head size, V
vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.nn import _onednn
from isoflop.nn._plain import is_plain
from isoflop.nn.attention import Attention
from isoflop.nn.block import Block, Place
from isoflop.nn.cache import FEW_SEQUENCES, KVCache
from isoflop.nn.decoder import Decoder
from isoflop.nn.depth import DepthRouter
from isoflop.nn.experts import ExpertsOfFew
from isoflop.nn.feed_forward import FeedForward, activate
from isoflop.nn.grouped import is_watched
from isoflop.nn.moe import MoE
from isoflop.nn.rotary import turn
from isoflop.nn.router import Router

FEWEST_STEPS: Final = 4
"""Steps from which on arranging the weights is worth its time."""

_SMALL: Final = 2**19
"""Elements up to which a matrix is copied; larger ones are reordered or left as they are."""

_MOST_BYTES: Final = 2**31
"""Of copies, reordered or not."""

_FEWEST_REORDERED: Final = 16
"""Steps from which on reordering pays for itself."""

_MOST_ROWS: Final = 128
"""Rows of a product up to which reordered weights are the faster ones for certain."""

_Step = Callable[[Tensor], Tensor]


class Stepper:
    """A model's next-token logits for one new token of each sequence of a cache; see `suits`.

    The model must not change while it lives: some weights are read where they are, some were copied. Copies take at
    most 2 GiB: of small matrices always, of large ones for 4 (on AMD's processors 2) to 128 sequences and 16 steps or
    more.
    """

    def __init__(self, model: Decoder, cache: KVCache, *, n_steps: int = FEWEST_STEPS) -> None:
        """`n_steps`: how many steps are to be expected."""
        spec = model.spec
        self.model, self.cache, self.batch = model, cache, cache.batch
        self._eps = _length_of_eps(spec.norm_eps, spec.d_model, model.embedding_VD)
        arrange = _Arranger(self.batch, n_steps)
        self._cos, self._sin = model.rotary(model.embedding_VD.device)
        self._blocks = [_Block(block, self, arrange) for block in model.blocks if isinstance(block, Block)]
        head_VD = model.embedding_VD if spec.tied_head else model.head_VD
        self._head = arrange(head_VD, model.final_gain)
        self._real_B11S = None
        if cache.padding_B is not None:
            slots = torch.arange(cache.capacity, device=cache.padding_B.device)
            self._real_B11S = (slots >= cache.padding_B[:, None])[:, None, None]
        # what changes from step to step
        self.cos = self.sin = self._cos
        self.mask_B11S: Tensor | None = None
        self.tokens_B1 = torch.zeros(0)
        self._place: Place | None = None

    @staticmethod
    def suits(model: Decoder) -> bool:
        """Whether a stepper can stand for the model (and a cache of its type): all modules are this package's own and
        plain (`is_plain`), in float32 or float64 on the CPU, nothing counts or compiles operations, and no gradient is
        asked for."""
        dtype = model.embedding_VD.dtype
        return (
            dtype in (torch.float32, torch.float64)
            and all(each.dtype == dtype and each.device.type == "cpu" for each in model.parameters())
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not is_watched()
            and all(is_plain(module, *_KNOWN) for module in model.modules())
            and "head" not in vars(model)
            and all(
                getattr(module, "norm_eps", model.spec.norm_eps) == model.spec.norm_eps for module in model.modules()
            )
            and model.decides_token_by_token
        )

    def __call__(self, tokens_B: Sequence[int]) -> Tensor:
        """Append one token to each sequence and return the logits of the next, [B, V].

        Raises InputError if the cache is full or made for another number of sequences.
        """
        cache, model = self.cache, self.model
        cache.check(len(tokens_B), 1)
        self.tokens_B1 = torch.tensor(tokens_B)[:, None]
        length = cache.length
        if cache.padding_B is None:
            self.cos, self.sin = self._cos[length], self._sin[length]
        else:
            positions_B = (length - cache.padding_B).clamp_min(0)
            self.cos, self.sin = self._cos[positions_B], self._sin[positions_B]
            assert self._real_B11S is not None
            self.mask_B11S = self._real_B11S[..., : length + 1]
        self._place = None
        x_BD = F.embedding(self.tokens_B1[:, 0], model.embedding_VD)
        for block in self._blocks:
            x_BD = block(x_BD)
        cache.length += 1
        return self._head(self.unit(x_BD))

    def unit(self, x_BD: Tensor) -> Tensor:
        """x / (sqrt(D) · its root mean square): RMSNorm but for the gain and a factor, which the next matrix holds."""
        return _unit(x_BD, self._eps)

    def place(self) -> Place:
        """Where the new tokens stand, for blocks that are asked as modules."""
        if self._place is None:
            self._place = self.model._place(self.tokens_B1, self.cache)
        return self._place


_KNOWN: Final = (Decoder, Block, Attention, FeedForward, MoE, Router, DepthRouter, nn.ModuleList)


def _length_of_eps(norm_eps: float, width: int, like: Tensor) -> Tensor:
    """sqrt(eps · width): the length of x with it is sqrt(width · (mean square of x + eps))."""
    return like.new_tensor(math.sqrt(norm_eps * width))


def _unit(x: Tensor, length_of_eps: Tensor) -> Tensor:
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), length_of_eps)


class _Arranger:
    """Makes products out of matrices, and counts the memory that they take."""

    def __init__(self, batch: int, n_steps: int) -> None:
        self.batch = batch
        several = batch >= (4 if _onednn.is_intel() else 2)  # MKL reads as fast for 3 rows as for 1, on Intel's alone
        self.reorders = several and batch <= _MOST_ROWS and n_steps >= _FEWEST_REORDERED
        self.left = _MOST_BYTES

    def __call__(self, w_FD: Tensor, gain_D: Tensor | None = None) -> _Step:
        """x ↦ x·Wᵀ; with the gain of a norm for x from `Stepper.unit`: then the norm's end belongs to it."""
        factor_D = None if gain_D is None else gain_D * math.sqrt(w_FD.shape[1])
        size = w_FD.numel() * w_FD.element_size()
        fits = size <= self.left
        if fits and w_FD.numel() <= _SMALL:
            self.left -= size
            w_DF = (w_FD if factor_D is None else w_FD * factor_D).t().contiguous()
            return lambda x_BD: torch.mm(x_BD, w_DF)
        product: Callable[[Tensor, Tensor], Tensor] = F.linear
        w = w_FD
        if fits and self.reorders and _onednn.can_reorder(w_FD):
            self.left -= size
            product, w = _onednn.product, _onednn.reordered(w_FD, self.batch)
        if factor_D is None:
            return lambda x_BD: product(x_BD, w)
        return lambda x_BD: product(x_BD * factor_D, w)


class _Block:
    """One block's step, [B, D] → [B, D]."""

    def __init__(self, block: Block, stepper: Stepper, arrange: _Arranger) -> None:
        self.block, self.stepper, self.layer = block, stepper, block.layer
        router = block.depth_router
        self.router: DepthRouter | None = router
        self.as_module = router is not None and not block.routes_feed_forward_only and stepper.batch > FEW_SEQUENCES
        if self.as_module:
            return
        attention, feed_forward = block.attention, block.feed_forward
        spec = attention.spec
        self.n_q, self.n_kv, self.head_dim = spec.n_heads, spec.kv_heads, spec.head_dim
        self.qkv = arrange(attention.w_qkv, block.attention_gain)
        self.out = arrange(attention.w_out)
        self.head_gains: Tensor | None = None
        if spec.qk_norm:
            gains = (attention.q_gain.expand(self.n_q, -1), attention.k_gain.expand(self.n_kv, -1))
            self.head_gains = torch.cat(gains) * math.sqrt(self.head_dim)
            self.head_eps = _length_of_eps(block.norm_eps, self.head_dim, attention.w_qkv)
        self.fed: _Step = (
            _dense(feed_forward, block.feed_forward_gain, arrange)
            if isinstance(feed_forward, FeedForward)
            else _Experts(feed_forward, block.feed_forward_gain, stepper, arrange)
        )
        self.scores: _Step | None = None
        if router is not None and router.is_learned:
            self.scores = _scores(router)
            self.threshold = float(router.threshold)

    def __call__(self, x_BD: Tensor) -> Tensor:
        if self.router is None:
            x_BD = x_BD + self.attend(self.stepper.unit(x_BD))
            return x_BD + self.feed(x_BD)
        if self.as_module:
            y_B1D: Tensor = self.block(x_BD[:, None], self.stepper.place())[0]
            return y_B1D[:, 0]
        return self.routed(x_BD)

    def attend(self, unit_BD: Tensor) -> Tensor:
        """Attention of all sequences."""
        stepper, cache = self.stepper, self.stepper.cache
        q_BHh, k_BKh, v_BKh = self.heads(unit_BD, stepper.cos, stepper.sin)
        k_BKSh, v_BKSh = cache.append_one(self.layer, k_BKh, v_BKh)
        # The queries that share keys stand as a sequence, so that no key is copied.
        q_BKGh = q_BHh.view(q_BHh.shape[0], self.n_kv, -1, self.head_dim)
        y_BKGh = F.scaled_dot_product_attention(q_BKGh, k_BKSh, v_BKSh, attn_mask=stepper.mask_B11S)
        return self.out(y_BKGh.reshape(-1, self.n_q * self.head_dim))

    def heads(self, unit_BD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned, and values."""
        n_turned = self.n_q + self.n_kv
        qkv = self.qkv(unit_BD).view(unit_BD.shape[0], n_turned + self.n_kv, self.head_dim)
        turned = qkv[:, :n_turned]
        if self.head_gains is not None:
            turned = _unit(turned, self.head_eps) * self.head_gains
        turned = turn(turned, cos, sin)
        return turned[:, : self.n_q], turned[:, self.n_q :], qkv[:, n_turned:]

    def feed(self, x_BD: Tensor) -> Tensor:
        """Feed-forward layer or experts of a residual stream."""
        return self.fed(self.stepper.unit(x_BD))

    def routed(self, x_BD: Tensor) -> Tensor:
        """The block for the sequences whose new token its router keeps."""
        stepper, attends = self.stepper, not self.block.routes_feed_forward_only
        if not attends:
            x_BD = x_BD + self.attend(stepper.unit(x_BD))
        unit_BD = stepper.unit(x_BD)
        sequences, gates_A1 = self.choose(x_BD, unit_BD)
        if not sequences:
            return x_BD
        everyone = len(sequences) == stepper.batch
        x_AD = x_BD
        if not everyone:
            rows_A = torch.tensor(sequences)
            x_AD, unit_BD = x_BD.index_select(0, rows_A), unit_BD.index_select(0, rows_A)
        if attends:
            cos, sin = stepper.cos, stepper.sin
            if not everyone and cos.ndim == 3:
                cos, sin = cos.index_select(0, rows_A), sin.index_select(0, rows_A)
            q_AHh, k_AKh, v_AKh = self.heads(unit_BD, cos, sin)
            compact = stepper.cache.compact(self.layer, sequences, [1] * len(sequences), 1)
            y_AH1h = compact.attend_apart(q_AHh[:, :, None], k_AKh[:, :, None], v_AKh[:, :, None])
            attended_AD = self.out(y_AH1h.reshape(len(sequences), -1))
            update_AD = attended_AD + self.feed(x_AD + attended_AD)
        else:
            update_AD = self.feed(x_AD)
        if gates_A1 is not None:
            update_AD = update_AD * gates_A1
        return x_BD + update_AD if everyone else x_BD.index_add(0, rows_A, update_AD)

    def choose(self, x_BD: Tensor, unit_BD: Tensor) -> tuple[list[int], Tensor | None]:
        """The sequences that the router keeps, and their gates."""
        router = self.router
        assert router is not None
        if self.scores is None:
            kept = self.block.choose(x_BD[:, None], self.stepper.place())
            return kept.rows_M.tolist(), kept.gates_M1
        scores_2B = self.scores(unit_BD)
        sequences = [row for row, value in enumerate(scores_2B[-1].tolist()) if value > self.threshold]
        if not sequences:
            return sequences, None
        score_B1 = scores_2B[0][:, None]
        if len(sequences) < len(x_BD):
            score_B1 = score_B1[sequences]
        return sequences, router.gate(score_B1).to(x_BD.dtype)


def _dense(layer: FeedForward, gain_D: Tensor, arrange: _Arranger) -> _Step:
    """A dense feed-forward layer of what `Stepper.unit` returns."""
    up, down, activation = arrange(layer.w_up, gain_D), arrange(layer.w_down), layer.activation
    return lambda unit_BD: down(activate(up(unit_BD), activation))


class _Experts:
    """An MoE layer of what `Stepper.unit` returns, [A, D] → [A, D]."""

    def __init__(self, layer: MoE, gain_D: Tensor, stepper: Stepper, arrange: _Arranger) -> None:
        self.layer = layer
        self.gain_D = gain_D * math.sqrt(gain_D.shape[0])
        can_take = ExpertsOfFew.can_take(stepper.model.embedding_VD, layer.w_up, layer.w_down)
        self.most = stepper.batch if can_take and not layer.experts.gates_after_norm else 0
        while self.most and not layer.takes_one_by_one(self.most):
            self.most //= 2
        if self.most == 0:
            return
        self.logits = arrange(layer.router.w_XD, gain_D)
        self.of_few = ExpertsOfFew(layer.w_up, layer.w_down, self.most, layer.experts.top_k, layer.activation)
        self.shared = None if layer.shared is None else _dense(layer.shared, gain_D, arrange)

    def __call__(self, unit_AD: Tensor) -> Tensor:
        layer, n_tokens = self.layer, unit_AD.shape[0]
        x_AD = unit_AD * self.gain_D
        if n_tokens > self.most:
            return layer.sample(x_AD[:, None])[:, 0]
        chosen_Ak, gates_Ak = layer.router.choices_by(self.logits(unit_AD))
        y_AD = self.of_few(x_AD, gates_Ak, chosen_Ak)
        if self.shared is not None:
            y_AD = y_AD + self.shared(unit_AD)
        return layer.normed(y_AD)


def _scores(router: DepthRouter) -> _Step:
    """Scores of a learned router, [1, B], or scores and decisions of its predictor, [2, B]."""
    factor = math.sqrt(router.w_1D.shape[1])
    w_D = router.w_1D[0] * factor
    if not router.spec.has_predictor:
        return lambda unit_BD: (unit_BD @ w_D)[None]
    up_DP, down_P = (router.predictor_up_PD * factor).t().contiguous(), router.predictor_down_1P[0]
    return lambda unit_BD: torch.stack((unit_BD @ w_D, F.silu(unit_BD @ up_DP) @ down_P))
