"""Keys and values of the tokens that were already processed.

Shapes: B sequences, K KV heads, h head size, S slots (capacity).
"""

import torch
from torch import Tensor

from isoflop.errors import InputError
from isoflop.spec import DecoderSpec


class KVCache:
    """Keys and values of every block, for `batch` sequences of at most `capacity` tokens.

    `Decoder.forward(tokens_BT, cache=cache)` appends the T new tokens to all sequences at once. Sequences of different
    lengths are padded on the left: `padding_B` says how many leading slots of each sequence hold padding; those are
    never attended to, and a sequence's first real token has position 0. For inference: no gradient flows through it.

    Memory: 2 · n_layers · batch · capacity · K · h elements of `dtype` (`isoflop.spec.kv_cache_bytes`).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        batch: int,
        capacity: int,
        *,
        padding_B: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch < 1:
            raise InputError(f"batch is {batch}; a cache holds at least 1 sequence.")
        if not 1 <= capacity <= spec.context:
            raise InputError(f"capacity is {capacity}; it must be 1 to the model's context of {spec.context} tokens.")
        shape = (spec.n_layers, batch, spec.attention.kv_heads, capacity, spec.attention.head_dim)
        self.capacity = capacity
        self.length = 0
        """Slots filled so far, padding included."""
        self.padding_B = None if padding_B is None else padding_B.to(device=device)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)

    def append(self, layer: int, k_BKTh: Tensor, v_BKTh: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of `layer` after the present ones; return all keys and values [B, K, S', h]."""
        end = self.length + k_BKTh.shape[2]
        self._keys[layer, :, :, self.length : end] = k_BKTh.detach()
        self._values[layer, :, :, self.length : end] = v_BKTh.detach()
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def positions(self, n_new: int) -> Tensor:
        """Return positions of the next `n_new` tokens: [n_new], or [B, n_new] where sequences are padded."""
        slots = torch.arange(self.length, self.length + n_new, device=self._keys.device)
        if self.padding_B is None:
            return slots
        return (slots - self.padding_B[:, None]).clamp_min(0)

    def mask(self, n_new: int) -> Tensor | None:
        """Return which slots each new token attends to, bool [n_new, S'] or [B, 1, n_new, S'].

        None where plain causal attention is meant (nothing cached yet) or one new token sees everything.
        """
        if self.padding_B is None and (n_new == 1 or self.length == 0):
            return None
        end = self.length + n_new
        slots = torch.arange(end, device=self._keys.device)
        causal = slots[None, :] <= slots[self.length :, None]
        if self.padding_B is None:
            return causal
        real = slots[None, None, :] >= self.padding_B[:, None, None]
        # A padding token attends to itself alone: a row without any key would be NaN.
        itself = slots[None, :] == slots[self.length :, None]
        return ((causal & real) | itself)[:, None]

    def check(self, batch: int, n_new: int) -> None:
        """Raise InputError unless `n_new` more tokens of `batch` sequences fit."""
        if batch != self._keys.shape[1]:
            raise InputError(f"tokens_BT has {batch} sequences; the cache was made for {self._keys.shape[1]}.")
        if self.length + n_new > self.capacity:
            raise InputError(
                f"tokens_BT brings {n_new} tokens; the cache holds {self.length} of at most {self.capacity}."
            )
