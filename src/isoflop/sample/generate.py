"""Batched generation with a key/value cache.

Shapes: B prompts, T tokens of the longest prompt, V vocabulary.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import InputError, RunError
from isoflop.nn import Decoder, KVCache
from isoflop.nn.stepping import FEWEST_STEPS, Stepper


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]] | Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens and return the new tokens alone.

    Prompts may differ in length: they are padded on the left, and padding is neither attended to nor counted in
    positions, so each continues as it would alone (but for the rounding of differently shaped matrix products).
    `temperature` 0 is greedy; otherwise logits are divided by it and a token is drawn from the smallest set of tokens
    whose probability reaches `top_p` (Holtzman et al. 2019, arXiv 1904.09751). Each prompt has its own host generator,
    seeded by `seed` and its place in the list, so its draws do not depend on its companions. A sequence ends after the
    token `stop`, which is included.

    On the CPU weights are arranged for sampling while it runs, in copies of at most 2 GiB (`isoflop.nn.stepping`).

    Raises RunError if logits are not finite, and InputError for an empty prompt, ids outside the vocabulary, more
    tokens than the model's context, a bad temperature, top_p or seed, and for a model whose experts or depth routers
    still decide as in training (set `model.decisions = "sampled"`; trained runs are calibrated, others want
    `calibrate_thresholds` first).
    """
    rows = _rows(prompts)
    _check(model, rows, max_new_tokens, temperature, top_p, seed, stop)
    if not rows or max_new_tokens == 0:
        return [[] for _ in rows]
    device, dtype = model.embedding_VD.device, model.embedding_VD.dtype
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    tokens_BT = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)], device=device)
    cache = KVCache(
        model.spec,
        len(rows),
        longest + max_new_tokens,
        padding_B=torch.tensor(padding) if any(padding) else None,
        device=device,
        dtype=dtype,
    )
    seeds = torch.randint(2**62, (len(rows),), generator=torch.Generator().manual_seed(seed)).tolist()
    generators = [torch.Generator().manual_seed(prompt_seed) for prompt_seed in seeds]
    new: list[list[int]] = [[] for _ in rows]
    running = [True] * len(rows)
    logits_BV = model(tokens_BT, cache=cache, last_only=True).logits_BTV[:, 0]
    step: Callable[[list[int]], Tensor] | None = None
    for n_new in range(1, max_new_tokens + 1):
        next_tokens = _choose(logits_BV.float(), temperature, top_p, generators)
        for index, token in enumerate(next_tokens):
            if running[index]:
                new[index].append(token)
                running[index] = token != stop
        if n_new == max_new_tokens or not any(running):
            break
        step = step or _step(model, cache, max_new_tokens - n_new)
        logits_BV = step(next_tokens)
    return new


def _step(model: Decoder, cache: KVCache, n_steps: int) -> Callable[[list[int]], Tensor]:
    """What appends a token to each sequence and returns the logits of the next, [B, V]."""
    if n_steps >= FEWEST_STEPS and Stepper.suits(model):
        return Stepper(model, cache, n_steps=n_steps)
    device = model.embedding_VD.device
    return lambda tokens: model(torch.tensor(tokens, device=device)[:, None], cache=cache).logits_BTV[:, -1]


def _choose(logits_BV: Tensor, temperature: float, top_p: float, generators: list[torch.Generator]) -> list[int]:
    highest_B, greedy_B = logits_BV.max(-1)
    if not all(map(math.isfinite, highest_B.tolist())):
        raise RunError("the model's logits are not finite numbers; its weights diverged or are broken.")
    if temperature == 0:
        greedy: list[int] = greedy_B.tolist()
        return greedy
    # In float64 and from the largest logit down, so that no temperature above 0 overflows or divides by 0.
    below_BV = (logits_BV - highest_B[:, None]).double()
    probabilities_BV = (below_BV / temperature).softmax(-1)
    sorted_BV, tokens_BV = probabilities_BV.sort(-1, descending=True)
    if top_p < 1:
        # Keep a token while the ones before it do not reach top_p yet; the first always stays.
        sorted_BV = sorted_BV.masked_fill(sorted_BV.cumsum(-1) - sorted_BV >= top_p, 0.0)
    totals_BV = sorted_BV.cumsum(-1)
    draws_B1 = torch.stack([torch.rand(1, generator=generator) for generator in generators])
    draws_B1 = draws_B1.to(totals_BV) * totals_BV[:, -1:]
    places_B1 = torch.searchsorted(totals_BV, draws_B1, right=True)
    # A draw on the upper edge belongs to the last token with any probability.
    last_B1 = (sorted_BV > 0).sum(-1, keepdim=True) - 1
    chosen: list[int] = tokens_BV.gather(-1, torch.minimum(places_B1, last_B1))[:, 0].tolist()
    return chosen


def _rows(prompts: Sequence[Sequence[int]] | Tensor) -> list[list[int]]:
    """The prompts as lists of whole numbers.

    Raises InputError for anything else.
    """
    given: Any = prompts.tolist() if isinstance(prompts, Tensor) else prompts
    rows: list[list[int]] = []
    try:
        if isinstance(given, str):
            raise TypeError
        for prompt in given:
            if isinstance(prompt, str):
                raise TypeError
            rows.append([operator.index(token) for token in prompt])
    except TypeError:
        raise InputError(
            "prompts must be a list of lists of token ids (whole numbers), or a tensor [B, T] of them; text is encoded "
            "first (`tokenizer.encode`)."
        ) from None
    return rows


def _check(
    model: Decoder,
    rows: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: int | None,
) -> None:
    spec = model.spec
    for name, value in (("max_new_tokens", max_new_tokens), ("seed", seed), ("stop", 0 if stop is None else stop)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} is {value!r}; it must be a whole number.")
    for name, number in (("temperature", temperature), ("top_p", top_p)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise InputError(f"{name} is {number!r}; it must be a number.")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must not be negative.")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number.")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed}; it must be between 0 and 2**64 - 1.")
    if stop is not None and not 0 <= stop < spec.vocab_size:
        raise InputError(f"stop is {stop}; token ids run from 0 to {spec.vocab_size - 1}.")
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"prompts[{index}] is empty; a prompt needs at least 1 token.")
        if len(row) + max_new_tokens > spec.context:
            raise InputError(
                f"prompts[{index}] has {len(row)} tokens and max_new_tokens is {max_new_tokens}, together "
                f"{len(row) + max_new_tokens}; the model's context is {spec.context}."
            )
        for token in row:
            if not 0 <= token < spec.vocab_size:
                raise InputError(f"prompts[{index}] holds token id {token}; ids run from 0 to {spec.vocab_size - 1}.")
