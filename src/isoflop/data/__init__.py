"""Text to token shards to batches.

`prepare` turns files into a data directory, once; `TokenData` opens one; `Batches` and `evaluation_windows` cut what
training and evaluation see. numpy only: no torch.
"""

from isoflop.data.batches import Batches, evaluation_windows
from isoflop.data.manifest import Manifest, Shard, Source, Split
from isoflop.data.prepare import prepare
from isoflop.data.sources import PYTHON_STDLIB
from isoflop.data.tokenizer import Tokenizer
from isoflop.data.tokens import TokenData, Tokens

__all__ = [
    "PYTHON_STDLIB",
    "Batches",
    "Manifest",
    "Shard",
    "Source",
    "Split",
    "TokenData",
    "Tokenizer",
    "Tokens",
    "evaluation_windows",
    "prepare",
]
