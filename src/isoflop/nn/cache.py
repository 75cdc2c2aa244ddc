"""Keys and values of the tokens that were already processed.

Shapes: B sequences, K KV heads, h head size, S slots (capacity); of a depth-routed block A sequences that have a new
token, C new tokens of a sequence.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import InputError
from isoflop.spec import DecoderSpec

FEW_SEQUENCES: Final = 32
"""Up to so many, attention of one sequence after the other is faster on the CPU than to gather the keys of all."""


class KVCache:
    """Keys and values of every block, for `batch` sequences of at most `capacity` tokens.

    `Decoder.forward(tokens_BT, cache=cache)` appends the T new tokens to all sequences at once. Sequences of different
    lengths are padded on the left: `padding_B` says how many leading slots of each sequence hold padding; those are
    never attended to, and a sequence's first real token has position 0. For inference: no gradient flows through it.

    A depth-routed block keeps the tokens alone that it processed, so that its sequences have different lengths; their
    slots start at the expected share of `capacity` and grow by half when one sequence needs more.

    Memory: 2 · n_layers · batch · capacity · K · h elements of `dtype`, with capacity · depth capacity in routed blocks
    (`isoflop.spec.kv_cache_bytes`).
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
        self.capacity = capacity
        self.length = 0
        """Slots filled so far, padding included."""
        self.padding_B = None if padding_B is None else padding_B.to(device=device)
        routing = spec.depth_routing
        self._lengths = {
            layer: [0] * batch for layer in spec.routed_layers if routing is not None and routing.part == "block"
        }
        heads, size = spec.attention.kv_heads, spec.attention.head_dim
        expected = capacity if routing is None else routing.n_kept(capacity)
        shapes = [
            (batch, heads, expected if layer in self._lengths else capacity, size) for layer in range(spec.n_layers)
        ]
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self._values = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]

    @property
    def batch(self) -> int:
        """Sequences."""
        return self._keys[0].shape[0]

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(part.numel() * part.element_size() for part in (*self._keys, *self._values))

    def append(self, layer: int, k_BKTh: Tensor, v_BKTh: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of `layer` after the present ones; return all keys and values [B, K, S', h]."""
        end = self.length + k_BKTh.shape[2]
        self._keys[layer][:, :, self.length : end] = k_BKTh.detach()
        self._values[layer][:, :, self.length : end] = v_BKTh.detach()
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def append_one(self, layer: int, k_BKh: Tensor, v_BKh: Tensor) -> tuple[Tensor, Tensor]:
        """`append` for one new token of each sequence, in fewer operations."""
        keys, values, end = self._keys[layer], self._values[layer], self.length + 1
        keys.select(2, self.length).copy_(k_BKh)
        values.select(2, self.length).copy_(v_BKh)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def compact(self, layer: int, sequences: list[int] | None, counts: list[int] | None, width: int) -> "CompactCache":
        """The place of a depth-routed block's new tokens: `counts` of each of the `sequences` (None: of all), in rows
        of `width`."""
        lengths, batch = self._lengths[layer], len(self._lengths[layer])
        chosen = list(range(batch)) if sequences is None else sequences
        return CompactCache(
            self, layer, chosen, [width] * len(chosen) if counts is None else counts, [lengths[i] for i in chosen]
        )

    def real(self, n_new: int) -> Tensor | None:
        """Which of the next `n_new` slots hold tokens and no padding, bool [B, n_new]; None: all."""
        if self.padding_B is None:
            return None
        slots = torch.arange(self.length, self.length + n_new, device=self._keys[0].device)
        return slots >= self.padding_B[:, None]

    def positions(self, n_new: int) -> Tensor:
        """Return positions of the next `n_new` tokens: [n_new], or [B, n_new] where sequences are padded."""
        slots = torch.arange(self.length, self.length + n_new, device=self._keys[0].device)
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
        slots = torch.arange(end, device=self._keys[0].device)
        causal = slots[None, :] <= slots[self.length :, None]
        if self.padding_B is None:
            return causal
        real = slots[None, None, :] >= self.padding_B[:, None, None]
        # A padding token attends to itself alone: a row without any key would be NaN.
        itself = slots[None, :] == slots[self.length :, None]
        return ((causal & real) | itself)[:, None]

    def check(self, batch: int, n_new: int) -> None:
        """Raise InputError unless `n_new` more tokens of `batch` sequences fit."""
        if batch != self.batch:
            raise InputError(f"tokens_BT has {batch} sequences; the cache was made for {self.batch}.")
        if self.length + n_new > self.capacity:
            raise InputError(
                f"tokens_BT brings {n_new} tokens; the cache holds {self.length} of at most {self.capacity}."
            )


@dataclass(frozen=True)
class CompactCache:
    """New tokens of some sequences in one depth-routed block, as `Attention` wants a cache."""

    cache: KVCache
    layer: int
    sequences: list[int]
    """The A sequences."""
    counts: list[int]
    """New tokens of each."""
    lengths: list[int]
    """Tokens that the block has of each already."""

    @property
    def length(self) -> int:
        """Most tokens that the block has of any of the sequences."""
        return max(self.lengths, default=0)

    @cached_property
    def _places_2A(self) -> Tensor:
        """The sequences and the lengths, on the device."""
        return torch.tensor((self.sequences, self.lengths), device=self.cache._keys[self.layer].device)

    def mask(self, width: int) -> Tensor | None:
        """Which slots each new token attends to, bool [A, 1, width, S']; None where plain causal attention is meant."""
        if not self.length or (width == 1 and len(set(self.lengths)) == 1):
            return None
        own_AC = self._places_2A[1, :, None]
        if width > 1:
            own_AC = own_AC + torch.arange(width, device=own_AC.device)
        slots = torch.arange(self.length + width, device=own_AC.device)
        return (slots <= own_AC[:, :, None])[:, None]

    @property
    def attends_apart(self) -> bool:
        """Whether `attend_apart` can do it, and does it faster: few sequences, one new token each, on the CPU."""
        few = len(self.sequences) <= FEW_SEQUENCES and all(count == 1 for count in self.counts)
        return few and self.cache._keys[self.layer].device.type == "cpu" and not torch.is_grad_enabled()

    def attend_apart(self, q_AH1h: Tensor, k_AK1h: Tensor, v_AK1h: Tensor) -> Tensor:
        """Write each sequence's new token after its own, and return what its queries find there, [A, H, 1, h].

        One sequence after the other: its keys stand together, so that nothing is gathered and no mask is needed.
        """
        self._grow(max(self.lengths) + 1)
        keys, values = self.cache._keys[self.layer], self.cache._values[self.layer]
        own, grouped = self.cache._lengths[self.layer], q_AH1h.shape[1] != k_AK1h.shape[1]
        found = []
        for row, (sequence, length) in enumerate(zip(self.sequences, self.lengths, strict=True)):
            k_KSh, v_KSh = keys[sequence], values[sequence]
            k_KSh[:, length] = k_AK1h[row, :, 0]
            v_KSh[:, length] = v_AK1h[row, :, 0]
            k_1KSh, v_1KSh = (part[None, :, : length + 1].to(q_AH1h.dtype) for part in (k_KSh, v_KSh))
            found.append(F.scaled_dot_product_attention(q_AH1h[row : row + 1], k_1KSh, v_1KSh, enable_gqa=grouped))
            own[sequence] += 1
        return found[0] if len(found) == 1 else torch.cat(found)

    def append(self, layer: int, k_AKCh: Tensor, v_AKCh: Tensor) -> tuple[Tensor, Tensor]:
        """Write each sequence's new tokens after its own; return keys and values [A, K, S', h]."""
        keys, values = self.cache._keys, self.cache._values
        width = k_AKCh.shape[2]
        self._grow(max(length + count for length, count in zip(self.lengths, self.counts, strict=True)))
        if width == 1 and all(self.counts):
            self._write_one(k_AKCh, v_AKCh)
        else:
            self._write(k_AKCh, v_AKCh)
        had = self.length
        own = self.cache._lengths[layer]
        for index, count in zip(self.sequences, self.counts, strict=True):
            own[index] += count
        if not had:
            return k_AKCh, v_AKCh
        end = had + width
        k, v = keys[layer], values[layer]
        if end > k.shape[2]:  # rows that only fill up point beyond the slots; no token attends there
            self._grow(end)
            k, v = keys[layer], values[layer]
        if len(self.sequences) == k.shape[0]:
            return k[:, :, :end], v[:, :, :end]
        if len(self.sequences) == 1:
            only = self.sequences[0]
            return k[only : only + 1, :, :end], v[only : only + 1, :, :end]
        chosen = self._places_2A[0]
        return k[:, :, :end].index_select(0, chosen), v[:, :, :end].index_select(0, chosen)

    def _write(self, k_AKCh: Tensor, v_AKCh: Tensor) -> None:
        keys, values = self.cache._keys[self.layer], self.cache._values[self.layer]
        places = [
            (row, sequence, new, length + new)
            for row, (sequence, count, length) in enumerate(zip(self.sequences, self.counts, self.lengths, strict=True))
            for new in range(count)
        ]
        row, sequence, new, slot = torch.tensor(places, device=keys.device).T
        keys[sequence, :, slot] = k_AKCh.detach()[row, :, new].to(keys.dtype)
        values[sequence, :, slot] = v_AKCh.detach()[row, :, new].to(values.dtype)

    def _write_one(self, k_AK1h: Tensor, v_AK1h: Tensor) -> None:
        """The same for one new token of each sequence."""
        keys, values = self.cache._keys[self.layer], self.cache._values[self.layer]
        if len(self.sequences) == 1:
            place = self.sequences[0], slice(None), self.lengths[0]
            keys[place], values[place] = k_AK1h.detach()[0, :, 0], v_AK1h.detach()[0, :, 0]
            return
        sequence, slot = self._places_2A
        keys[sequence, :, slot] = k_AK1h.detach()[:, :, 0].to(keys.dtype)
        values[sequence, :, slot] = v_AK1h.detach()[:, :, 0].to(values.dtype)

    def _grow(self, needed: int) -> None:
        for parts in (self.cache._keys, self.cache._values):
            old = parts[self.layer]
            if needed > old.shape[2]:
                new = old.new_zeros(*old.shape[:2], max(needed, old.shape[2] * 3 // 2), old.shape[3])
                new[:, :, : old.shape[2]] = old
                parts[self.layer] = new
