"""Bytes of the held-out text that a run is evaluated on.

W windows, T tokens in a sequence, V vocabulary.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isoflop.data import TokenData
from isoflop.data.manifest import TOKENIZER_FILE

_BYTES = 256


def evaluated_bytes_per_token(data: TokenData, windows_WT: npt.NDArray[np.int64]) -> float:
    """UTF-8 bytes per token that is predicted: all of each window but its first; the end of a document has none.

    Exact for byte tokens and byte-level BPE, whose tokens are byte strings. Other tokenizers lose text (unknown words,
    normalised spaces), so that bytes of single tokens are not defined; theirs is the mean over the validation split.

    Args:
        data: the data directory.
        windows_WT: token ids [W, context + 1] of its validation split.
    """
    if data.manifest.tokenizer_sha256 is None:
        bytes_V = np.zeros(data.vocab_size, dtype=np.int64)
        bytes_V[:_BYTES] = 1
    else:
        known = _byte_level_lengths(data.path / TOKENIZER_FILE, data.vocab_size)
        if known is None:
            return data.bytes_per_token
        bytes_V = known
    bytes_V[data.manifest.end_of_document] = 0
    predicted = windows_WT[:, 1:]
    return int(bytes_V[predicted].sum()) / predicted.size


def _byte_level_lengths(path: Path, vocab_size: int) -> npt.NDArray[np.int64] | None:
    """Bytes of each token in a tokenizer.json of byte-level BPE, which writes one character for each byte.

    None if it is of another kind, or changes the text before it splits it.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    decoder, model = stored.get("decoder") or {}, stored.get("model") or {}
    if decoder.get("type") != "ByteLevel" or model.get("type") != "BPE" or stored.get("normalizer") is not None:
        return None
    bytes_V = np.zeros(vocab_size, dtype=np.int64)
    for token, number in model["vocab"].items():
        bytes_V[number] = len(token)
    for added in stored.get("added_tokens", ()):
        bytes_V[added["id"]] = len(added["content"].encode("utf-8"))
    return bytes_V
