"""Byte-pair encoding by the book: split, then merge the pair of lowest rank until no pair has a rank."""

import regex

GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""Radford et al. 2019, the published encoder."""


def encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Token ids (ranks) of `text`."""
    ids = []
    for word in regex.findall(GPT2_PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode("utf-8")]
        while True:
            pairs = {i: parts[i] + parts[i + 1] for i in range(len(parts) - 1)}
            known = {i: pair for i, pair in pairs.items() if pair in ranks}
            if not known:
                break
            at = min(known, key=lambda i: (ranks[known[i]], i))
            parts = [*parts[:at], known[at], *parts[at + 2 :]]
        ids += [ranks[part] for part in parts]
    return ids
