"""From documents to token ids and back: bytes, a Hugging Face `tokenizers` file, GPT-2 ranks, a trained BPE."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from isoflop.data.ranks import RANKED_END_OF_DOCUMENT, read_gpt2_ranks, split_into_merges
from isoflop.errors import InputError

if TYPE_CHECKING:
    import tokenizers

Ids = npt.NDArray[np.uint32]

_END_OF_DOCUMENT: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
"""Names under which tokenizers keep an end of document; the first is added to one that has none."""
_BATCH_BYTES: Final = 2 * 2**20
SMALLEST_BPE: Final = 257
"""256 bytes and end-of-document."""


class Tokenizer(Protocol):
    """Text to token ids and back. Ids run from 0 to vocab_size - 1."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, end_of_document included."""
        ...

    @property
    def end_of_document(self) -> int:
        """Token id that follows every document; no text is ever encoded to it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added at either end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; end_of_document gives nothing, broken UTF-8 gives the replacement character."""
        ...

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """Token ids of each UTF-8 document, end_of_document at its end."""
        ...


class ByteTokenizer:
    """Every UTF-8 byte is its own id; 256 ends a document."""

    vocab_size = 257
    end_of_document = 256

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added at either end."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; end_of_document gives nothing, broken UTF-8 gives the replacement character."""
        return bytes(int(token) for token in tokens if token != self.end_of_document).decode("utf-8", "replace")

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """Token ids of each UTF-8 document, end_of_document at its end."""
        for document in documents:
            ids = np.empty(len(document) + 1, dtype=np.uint32)
            ids[:-1] = np.frombuffer(document, dtype=np.uint8)
            ids[-1] = self.end_of_document
            yield ids


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library; special tokens that occur in the text are ordinary text."""

    def __init__(self, model: Any) -> None:
        model.no_truncation()
        model.no_padding()
        name = next((name for name in _END_OF_DOCUMENT if model.token_to_id(name) is not None), _END_OF_DOCUMENT[0])
        model.add_special_tokens([name])
        model.encode_special_tokens = True
        self._model = model
        self.end_of_document: int = model.token_to_id(name)
        self.vocab_size: int = max(model.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added at either end."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; special tokens give nothing, broken UTF-8 gives the replacement character."""
        text: str = self._model.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """Token ids of each UTF-8 document, end_of_document at its end."""
        for batch in _batches(documents):
            for encoding in self._model.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array([*encoding.ids, self.end_of_document], dtype=np.uint32)

    def save(self, path: Path) -> None:
        """Write it in the format of the `tokenizers` library."""
        self._model.save(str(path))


def load_tokenizer(path: Path) -> SubwordTokenizer:
    """Read a tokenizer.json of the `tokenizers` library, or GPT-2's ranks (.tiktoken).

    Raises:
        InputError: if the file is missing, is neither, or the library is not installed.
    """
    library = tokenizers_library(f"tokenizer file {path}")
    if not path.is_file():
        raise InputError(
            f"tokenizer is {path}, which is not a file; allowed: bytes, bpe, a tokenizer.json of the Hugging Face "
            "tokenizers library, or a GPT-2 .tiktoken file."
        )
    if path.suffix == ".tiktoken":
        return SubwordTokenizer(byte_level_bpe(read_gpt2_ranks(path)))
    try:
        return SubwordTokenizer(library.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise InputError(
            f"tokenizer file {path} is not in the format of the tokenizers library: {str(error).splitlines()[0]}."
        ) from None


def train_bpe(documents: Iterable[bytes], vocab_size: int) -> SubwordTokenizer:
    """Train a byte-level BPE with GPT-2's splitting pattern (Sennrich et al. 2016; Radford et al. 2019).

    Args:
        documents: UTF-8 text to train on.
        vocab_size: ids in all: 256 bytes, end-of-document, and the merges.

    Raises:
        InputError: if vocab_size is below 257, or the text is too little for so many merges.
    """
    library = tokenizers_library("a BPE tokenizer")
    if vocab_size < SMALLEST_BPE:
        raise InputError(
            f"vocab_size is {vocab_size}; a BPE needs at least {SMALLEST_BPE} (256 bytes and end-of-document)."
        )
    model = _empty_byte_level(library, library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[_END_OF_DOCUMENT[0]],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(_batches(documents), trainer=trainer)
    if (size := model.get_vocab_size()) < vocab_size:
        raise InputError(f"vocab_size is {vocab_size}; this text is too little for more than {size}.")
    return SubwordTokenizer(model)


def byte_level_bpe(ranks: dict[bytes, int]) -> "tokenizers.Tokenizer":
    """GPT-2's kind of BPE from its merge ranks; end-of-document gets the next free id."""
    library = tokenizers_library("a tokenizer from ranks")
    name = dict(zip(range(256), _byte_names(), strict=True))
    vocabulary = {"".join(name[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [
        ("".join(name[byte] for byte in left), "".join(name[byte] for byte in right))
        for left, right in split_into_merges(ranks)
    ]
    model = _empty_byte_level(library, library.models.BPE(vocab=vocabulary, merges=merges))
    model.add_special_tokens([RANKED_END_OF_DOCUMENT])
    return model


def _empty_byte_level(library: Any, bpe: Any) -> "tokenizers.Tokenizer":
    model: tokenizers.Tokenizer = library.Tokenizer(bpe)
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    return model


def _byte_names() -> list[str]:
    """The printable character that GPT-2 writes for each byte: itself, or one from 256 on if it does not print."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _batches(documents: Iterable[bytes]) -> Iterator[list[str]]:
    """Decoded documents, about 2 MiB at a time."""
    source = iter(documents)
    while first := list(islice(source, 1)):
        batch, size = first, len(first[0])
        while size < _BATCH_BYTES and (document := next(source, None)) is not None:
            batch.append(document)
            size += len(document)
        yield [document.decode("utf-8") for document in batch]


def tokenizers_library(purpose: str) -> Any:
    """The optional library that `purpose` needs.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            f"{purpose} needs the tokenizers library: install it with `pip install 'isoflop[tokenizers]'`, or take "
            "tokenizer bytes."
        ) from None
    return tokenizers
