import json

import numpy as np
import pytest

from isoflop.data import TokenData, evaluation_windows, prepare
from isoflop.train.evaluated_bytes import evaluated_bytes_per_token

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    root = tmp_path_factory.mktemp("bytes")
    (root / "text").mkdir()
    words = ["größe", "naïve", "漢字", "loss", "law"]
    for index in range(200):
        chosen = [words[(index * 7 + place * place) % len(words)] for place in range(20 + index % 30)]
        (root / f"text/{index:03}.txt").write_text(" ".join(chosen) * (1 + index % 3))
    return root


def test_bytes_are_counted_over_the_tokens_that_are_predicted(text):
    prepare([text / "text"], text / "bpe", tokenizer="bpe", vocab_size=280, validation_fraction=0.2)
    data = TokenData(text / "bpe")
    windows = evaluation_windows(data, context=8, tokens=400)
    every = np.asarray(data.tokens("validation"))
    # All of the split: then it is the text, to the byte.
    whole = np.concatenate([[0], every])[None]
    assert evaluated_bytes_per_token(data, whole) == pytest.approx(data.bytes_per_token, rel=1e-12)
    vocabulary = json.loads((data.path / "tokenizer.json").read_text())["model"]["vocab"]
    length = {number: len(token) for token, number in vocabulary.items()}
    length[data.manifest.end_of_document] = 0
    predicted = windows[:, 1:].ravel().tolist()
    expected = sum(length[token] for token in predicted) / len(predicted)
    assert evaluated_bytes_per_token(data, windows) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(data.bytes_per_token, rel=1e-4)


def test_a_byte_is_a_byte_and_the_end_of_a_document_none(text):
    prepare([text / "text"], text / "plain", validation_fraction=0.2)
    windows = np.array([[1, 2, 256, 3, 255], [256, 256, 256, 256, 7]])
    assert evaluated_bytes_per_token(TokenData(text / "plain"), windows) == 4 / 8


def test_a_tokenizer_that_loses_text_has_the_mean_of_the_split(text):
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "loss": 1, "law": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(text / "words.json"))
    prepare([text / "text"], text / "words", tokenizer=str(text / "words.json"), validation_fraction=0.2)
    data = TokenData(text / "words")
    assert evaluated_bytes_per_token(data, evaluation_windows(data, context=8, tokens=80)) == data.bytes_per_token
