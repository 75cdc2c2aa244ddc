"""GPT-2's byte-pair ranks as published for tiktoken: one base64 token and its rank a line."""

import base64
import binascii
from itertools import pairwise
from pathlib import Path
from typing import Final

from isoflop.errors import InputError

RANKED_END_OF_DOCUMENT: Final = "<|endoftext|>"
"""GPT-2's only special token; its id is the one after the last rank."""
_GPT2_RANKS: Final = 50_256


def read_gpt2_ranks(path: Path) -> dict[bytes, int]:
    """Ranks by token.

    A rank file does not name the pattern that splits text before merging, so only GPT-2's (50,256 ranks, known
    pattern) is accepted.

    Raises:
        InputError: if the file is not such a list, or is not GPT-2's.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(
                f"tokenizer file {path}, line {number} is not a base64 token and its rank (truncated?)."
            ) from None
    if len(ranks) != _GPT2_RANKS or sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(
            f"tokenizer file {path} holds {len(ranks)} ranks; only GPT-2's {_GPT2_RANKS} are supported, because a rank "
            "file does not name its splitting pattern: give a tokenizer.json instead."
        )
    return ranks


def split_into_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token of more than one byte is merged from, by rank.

    It is what merging the token's bytes gives when only lower ranks exist: exactly two parts.

    Raises:
        InputError: if a token cannot be reached by merging.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _merge(token, ranks, below=rank)
        if len(parts) != 2:
            raise InputError(f"rank {rank} ({token!r}) is not the merge of two tokens of lower rank.")
        merges.append((parts[0], parts[1]))
    return merges


def _merge(token: bytes, ranks: dict[bytes, int], *, below: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        best = min(joined)
        if best >= below:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
