"""Models from the checkpoints of a run."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from isoflop.data import TokenData, evaluation_windows
from isoflop.errors import InputError, RunError
from isoflop.train import TrainConfig, load_model, train

QUICK = TrainConfig(
    tokens=20 * 512, batch_tokens=512, learning_rate=1e-2, evaluation_tokens=2048, log_every=4, evaluate_every=8
)


def test_no_checkpoint_is_kept_when_none_is_wanted(tmp_path, dense, data_dir):
    train(dense, replace(QUICK, keep_checkpoints=0), data=data_dir, out=tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    with pytest.raises(RunError, match="no sound checkpoint"):
        load_model(tmp_path / "run")


def test_load_model_names_what_it_needs(tmp_path, dense, data_dir):
    with pytest.raises(InputError, match="must be a run directory"):
        load_model(tmp_path)
    train(dense, QUICK, data=data_dir, out=tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-00000020"
    loaded = load_model(checkpoint)
    assert loaded.step == 20
    assert loaded.spec == dense
    windows = evaluation_windows(TokenData(data_dir), context=16, tokens=160)
    tokens = torch.from_numpy(np.ascontiguousarray(windows))
    assert torch.equal(
        loaded.model(tokens[:, :-1]).logits_BTV, load_model(tmp_path / "run").model(tokens[:, :-1]).logits_BTV
    )
    os.truncate(checkpoint / "model.safetensors", 10)
    with pytest.raises(RunError, match=r"damaged: model\.safetensors"):
        load_model(checkpoint)
