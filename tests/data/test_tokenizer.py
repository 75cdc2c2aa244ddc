"""Tokenizers: what is encoded comes back, documents end with a token that no text gives, published ranks are exact."""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import byte_pair

from isoflop.data import TokenData, prepare
from isoflop.data.ranks import read_gpt2_ranks, split_into_merges
from isoflop.data.tokenizer import ByteTokenizer, SubwordTokenizer, byte_level_bpe, load_tokenizer, train_bpe
from isoflop.errors import InputError

tokenizers = pytest.importorskip("tokenizers")

GPT2 = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizer" / "gpt2.tiktoken"
TEXT = [
    f"The {thing} of house number {number} isn't what it's said to be; they'll see naïve café–goers.\n\n".encode()
    for number, thing in enumerate(["door", "roof", "cellar", "windows", "garden", "gardener", "story"] * 20)
]
unicode_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def trained() -> SubwordTokenizer:
    return train_bpe(TEXT, 340)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for number, document in enumerate(TEXT):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number:03d}.txt").write_bytes(document)
    return tmp_path / "text"


@given(text=unicode_text)
def test_bytes_come_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode([*ids, tokenizer.end_of_document]) == text


def test_broken_utf8_decodes_to_the_replacement_character() -> None:
    assert ByteTokenizer().decode([0x61, 0xC3]) == "a�"


@settings(deadline=None)
@given(text=unicode_text)
def test_any_text_comes_back_from_a_trained_bpe(trained: SubwordTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode([*ids, trained.end_of_document]) == text
    assert all(0 <= token < 340 for token in ids)


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|endoftext|>b", " <|endoftext|><|endoftext|>"])
def test_no_text_gives_the_end_of_a_document(trained: SubwordTokenizer, text: str) -> None:
    assert trained.end_of_document not in trained.encode(text)
    assert trained.decode(trained.encode(text)) == text
    (encoded,) = trained.encode_documents([text.encode()])
    assert encoded.tolist() == [*trained.encode(text), trained.end_of_document]


def test_a_bpe_is_trained_on_the_training_split_alone(rows: Path, tmp_path: Path) -> None:
    manifest = prepare(rows, tmp_path / "bpe", tokenizer="bpe", vocab_size=300, validation_fraction=0.3)
    prepare(rows, tmp_path / "bytes", validation_fraction=0.3)
    data, raw = TokenData(tmp_path / "bpe"), TokenData(tmp_path / "bytes")
    data.verify()
    assert manifest.vocab_size == data.tokenizer.vocab_size == 300
    ends = np.flatnonzero(np.asarray(raw.tokens("train")) == raw.manifest.end_of_document)
    documents = np.split(np.asarray(raw.tokens("train")), ends + 1)
    again = train_bpe([document[:-1].astype(np.uint8).tobytes() for document in documents if len(document)], 300)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "bpe" / "tokenizer.json").read_bytes()
    for split in ("train", "validation"):
        ids = np.asarray(data.tokens(split)).tolist()
        assert ids.count(data.manifest.end_of_document) == manifest.splits[split].documents
        assert data.tokenizer.decode(ids) == raw.tokenizer.decode(np.asarray(raw.tokens(split)).tolist())
    assert data.bytes_per_token == manifest.splits["validation"].bytes / len(data.tokens("validation")) > 1.2


def test_too_many_merges_for_the_text() -> None:
    with pytest.raises(InputError, match=r"vocab_size is 5000; this text is too little for more than \d+"):
        train_bpe(TEXT, 5000)


def word_level(path: Path, words: list[str], special: list[str]) -> Path:
    """A tokenizer file with truncation, padding and a post-processor that adds a token: none of which may act."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["[BOS]", *special])
    begin = ("[BOS]", model.token_to_id("[BOS]"))
    model.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[begin])
    model.enable_truncation(4)
    model.enable_padding(length=16)
    model.save(str(path))
    return path


def test_an_existing_file_is_used_as_it_is(rows: Path, tmp_path: Path) -> None:
    path = word_level(tmp_path / "tokenizer.json", ["The", "house", "roof", "of"], ["</s>"])
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 7
    assert tokenizer.end_of_document == 6
    assert tokenizer.encode("The roof of The house of The roof") == [1, 3, 4, 1, 2, 4, 1, 3]
    manifest = prepare(rows, tmp_path / "data", tokenizer=path)
    assert (manifest.vocab_size, manifest.end_of_document, manifest.dtype) == (7, 6, "uint16")
    assert TokenData(tmp_path / "data").tokenizer.encode("The house") == [1, 2]
    (tmp_path / "other").mkdir()
    other = word_level(tmp_path / "other" / "tokenizer.json", ["The"], [])
    with pytest.raises(InputError, match="holds other data"):
        prepare(rows, tmp_path / "data", tokenizer=other)


def test_a_file_without_an_end_of_document_gets_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(word_level(tmp_path / "tokenizer.json", ["The"], []))
    assert tokenizer.vocab_size == 4
    assert tokenizer.end_of_document == 3


def test_large_vocabularies_take_four_bytes(rows: Path, tmp_path: Path) -> None:
    path = word_level(tmp_path / "tokenizer.json", [*(f"w{number}" for number in range(70_000)), "house"], [])
    manifest = prepare(rows, tmp_path / "data", tokenizer=path)
    data = TokenData(tmp_path / "data")
    assert manifest.dtype == "uint32"
    assert (tmp_path / "data" / "train-00000.bin").stat().st_size == 4 * len(data.tokens("train"))
    assert 70_001 in np.asarray(data.tokens("train"))


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(InputError, match="is not in the format of the tokenizers library"):
        load_tokenizer(tmp_path / "tokenizer.json")


def ranks_of(trained: SubwordTokenizer, tmp_path: Path) -> dict[bytes, int]:
    """Ranks as tiktoken would publish them, read from the vocabulary alone: the merges stay behind."""
    trained.save(tmp_path / "trained.json")
    vocabulary = json.loads((tmp_path / "trained.json").read_text(encoding="utf-8"))["model"]["vocab"]
    own = [name for name in map(chr, range(256)) if name in vocabulary]  # printable bytes name themselves
    others = (chr(number) for number in range(256, 512))
    bytes_by_name = {chr(byte) if chr(byte) in own else next(others): byte for byte in range(256)}
    del vocabulary["<|endoftext|>"]
    return {bytes(bytes_by_name[name] for name in token): number - 1 for token, number in vocabulary.items()}


@pytest.fixture(scope="module")
def ranks(trained: SubwordTokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    return ranks_of(trained, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def rebuilt(ranks: dict[bytes, int]) -> SubwordTokenizer:
    return SubwordTokenizer(byte_level_bpe(ranks))


@settings(deadline=None)
@given(text=st.one_of(unicode_text, st.lists(st.sampled_from([t.decode() for t in TEXT[:7]]), max_size=2).map("".join)))
def test_a_tokenizer_from_ranks_is_the_one_that_they_came_from(
    trained: SubwordTokenizer, ranks: dict[bytes, int], rebuilt: SubwordTokenizer, text: str
) -> None:
    assert rebuilt.encode(text) == [token - 1 for token in trained.encode(text)] == byte_pair.encode(text, ranks)
    assert (rebuilt.end_of_document, rebuilt.vocab_size) == (339, 340)


def test_ranks_that_cannot_be_merged_are_refused() -> None:
    with pytest.raises(InputError, match="rank 2"):
        split_into_merges({b"a": 0, b"b": 1, b"aba": 2})


def test_rank_files_that_are_cut_or_of_another_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    lines = [base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256)]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="holds 256 ranks; only GPT-2's 50256"):
        load_tokenizer(path)
    path.write_bytes(b"\n".join([*lines, b"YWE="]))
    with pytest.raises(InputError, match="line 257 is not a base64 token and its rank"):
        load_tokenizer(path)


@pytest.mark.skipif(not GPT2.exists(), reason="GPT-2 ranks not at hand")
def test_gpt2_ranks_encode_as_published() -> None:
    tokenizer = load_tokenizer(GPT2)
    ranks = read_gpt2_ranks(GPT2)
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    sample = Path(__file__).read_text(encoding="utf-8") + " \t\n\n naïve 漢字 🙂 don't I'LL 3.14\r\n "
    assert tokenizer.encode(sample) == byte_pair.encode(sample, ranks)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


@pytest.mark.parametrize(
    ("module", "source", "options", "extra"),
    [
        ("tokenizers", "text.txt", {"tokenizer": "bpe", "vocab_size": 300}, "isoflop[tokenizers]"),
        ("tokenizers", "text.txt", {"tokenizer": "some.json"}, "isoflop[tokenizers]"),
        ("pyarrow", "table.parquet", {}, "isoflop[parquet]"),
        ("datasets", "dataset", {}, "isoflop[datasets]"),
    ],
)
def test_a_missing_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, options: dict[str, object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if source == "dataset":
        (tmp_path / source).mkdir()
        (tmp_path / source / "dataset_dict.json").write_text("{}")
    else:
        (tmp_path / source).write_text("one\n\ntwo")
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / source, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert f"pip install '{extra}'" in str(caught.value)


def test_training_on_subwords_needs_no_tokenizers(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(rows, tmp_path / "data", tokenizer="bpe", vocab_size=300)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    data = TokenData(tmp_path / "data")
    assert len(data.tokens("train")) > 1000
    assert data.vocab_size == 300
