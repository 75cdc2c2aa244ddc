"""Causal grouped-query attention with rotary positions.

Shapes: B batch, T new tokens, S attended slots, D d_model, H query heads, K KV heads, h head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.nn._init import gain, truncated_normal
from isoflop.nn.cache import CompactCache, KVCache
from isoflop.nn.linear import linear
from isoflop.nn.rotary import rotary_tables, rotate
from isoflop.spec import AttentionSpec


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), [B, T, D] → [B, T, D].

    `w_qkv` holds the query, key and value matrices above each other: rows [H·h | K·h | K·h], D columns; `w_out` is
    [D, H·h]. With `spec.qk_norm` queries and keys pass an RMSNorm over h before they are turned.
    """

    def __init__(
        self,
        d_model: int,
        spec: AttentionSpec,
        *,
        norm_eps: float = 1e-6,
        init_scale: float = 1.0,
        output_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.norm_eps = norm_eps
        n_rows = (spec.n_heads + 2 * spec.kv_heads) * spec.head_dim
        std_in = math.sqrt(init_scale / d_model)
        std_out = math.sqrt(init_scale / spec.width) * output_scale
        self.w_qkv = truncated_normal(n_rows, d_model, std=std_in, generator=generator, device=device, dtype=dtype)
        self.w_out = truncated_normal(d_model, spec.width, std=std_out, generator=generator, device=device, dtype=dtype)
        if spec.qk_norm:
            self.q_gain = gain(spec.head_dim, 1.0, device, dtype)
            self.k_gain = gain(spec.head_dim, 1.0, device, dtype)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | CompactCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each token to itself and the ones before it.

        `rotary`: cos and sin, [T, 1, h] or [B, T, 1, h]; default: positions 0 to T−1. `cache`: keys and values of
        earlier tokens, to which this block (`layer`) appends; `mask`: what `cache.mask` returned.
        """
        spec = self.spec
        n_q, n_kv, batch, length = spec.n_heads, spec.kv_heads, x_BTD.shape[0], x_BTD.shape[1]
        qkv = linear(x_BTD, self.w_qkv).view(batch, length, n_q + 2 * n_kv, spec.head_dim)
        if rotary is None:
            positions = torch.arange(length, device=x_BTD.device)
            cos, sin = rotary_tables(positions, spec.head_dim, spec.rope_theta, qkv.dtype)
            rotary = (cos[:, None], sin[:, None])
        cos, sin = (table.to(qkv.dtype) for table in rotary)
        if spec.qk_norm:
            q_BTHh, k_BTKh, v_BTKh = qkv.split((n_q, n_kv, n_kv), dim=2)
            q_BTHh = F.rms_norm(q_BTHh, (spec.head_dim,), self.q_gain.to(qkv.dtype), self.norm_eps)
            k_BTKh = F.rms_norm(k_BTKh, (spec.head_dim,), self.k_gain.to(qkv.dtype), self.norm_eps)
            q_BTHh, k_BTKh = rotate(q_BTHh, cos, sin), rotate(k_BTKh, cos, sin)
        else:
            turned, v_BTKh = qkv.split((n_q + n_kv, n_kv), dim=2)
            q_BTHh, k_BTKh = rotate(turned, cos, sin).split((n_q, n_kv), dim=2)
        q_BHTh, k_BKSh, v_BKSh = (part.transpose(1, 2) for part in (q_BTHh, k_BTKh, v_BTKh))
        if isinstance(cache, CompactCache) and length == 1 and cache.attends_apart:
            y_BHTh = cache.attend_apart(q_BHTh, k_BKSh, v_BKSh)
            return linear(y_BHTh.reshape(batch, length, spec.width), self.w_out)
        n_cached = 0
        if cache is not None:
            n_cached = cache.length
            k_BKSh, v_BKSh = cache.append(layer, k_BKSh, v_BKSh)
            k_BKSh, v_BKSh = k_BKSh.to(q_BHTh.dtype), v_BKSh.to(q_BHTh.dtype)
        y_BHTh = F.scaled_dot_product_attention(
            q_BHTh,
            k_BKSh,
            v_BKSh,
            attn_mask=mask,
            is_causal=mask is None and n_cached == 0,
            enable_gqa=n_kv != n_q,
        )
        return linear(y_BHTh.transpose(1, 2).reshape(batch, length, spec.width), self.w_out)
