import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from isoflop.data import TokenData, evaluation_windows
from isoflop.errors import InputError, RunError
from isoflop.nn import Decoder
from isoflop.spec import ExpertsSpec, RouterSpec, count
from isoflop.train import TrainConfig, load_model, resolve, train
from isoflop.train.directory import RunDirectory
from isoflop.train.optimizer import build_optimizer
from isoflop.train.run import Run

QUICK = TrainConfig(
    tokens=20 * 512, batch_tokens=512, learning_rate=1e-2, evaluation_tokens=2048, log_every=4, evaluate_every=8
)
TIMINGS = ("tokens_per_second", "flops_per_second", "wall_seconds")


def read_metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def weights(run):
    return (sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors").read_bytes()


def interrupt_at(monkeypatch, step):
    """Make training stop with an exception once `step` steps are done, as if the process had died."""
    original = Run._train_step

    def step_or_die(self):
        if self.step == step:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Run, "_train_step", step_or_die)


def train_until(step, spec, config, *, data, out):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(spec, config, data=data, out=out)


def test_record_is_complete_and_consistent(tmp_path, moe, data_dir):
    record = train(moe, QUICK, data=data_dir, out=tmp_path / "run", extra={"study": "s", "architecture": "moe"})
    counted = count(moe)
    assert record["status"] == "done"
    assert record["error"] is None
    assert record["study"] == "s"
    assert record["run_id"] == "run"
    assert record["steps"] == 20
    assert record["tokens"] == 20 * 512
    assert record["flops"] == record["tokens"] * counted.training_flops_per_token
    assert record["params_total"] == sum(p.numel() for p in Decoder(moe).parameters()) - counted.params_embedding
    assert record["router"] == "token_choice"
    assert record["n_experts"] == 8
    assert record["causal"] is True
    assert 0 < record["loss"] < math.log(257) - 1
    predicted = evaluation_windows(TokenData(data_dir), context=16, tokens=2048)[:, 1:]
    bytes_per_token = np.count_nonzero(predicted < 256) / predicted.size
    assert record["bits_per_byte"] == pytest.approx(record["loss"] / math.log(2) / bytes_per_token)
    assert 0 < record["loss_std"] < 0.5
    assert record["load_max"] >= 1
    assert record["epochs"] > 0
    assert record == json.loads((tmp_path / "run/result.json").read_text())
    load_LX = json.loads((tmp_path / "run/expert_load.json").read_text())["load"]
    assert [len(load_X) for load_X in load_LX] == [8, 8]
    assert [sum(load_X) for load_X in load_LX] == pytest.approx([1, 1], abs=1e-4)


def test_dense_record_has_the_neutral_moe_columns(tmp_path, dense, data_dir):
    record = train(dense, QUICK, data=data_dir, out=tmp_path / "run")
    neutral = {"granularity": 1, "expansion_rate": 1, "n_experts": 1, "top_k": 1, "sparsity": 0, "router": "none"}
    neutral |= {"depth_capacity": 1, "load_max": 1, "dropped_share": 0, "params_router": 0, "loss_sampled": None}
    assert {name: record[name] for name in neutral} == neutral


def test_a_loop_written_out_by_hand_gives_the_same_weights(tmp_path, dense, data_dir):
    from isoflop.data import Batches

    config = replace(QUICK, evaluate_every=None, warmup_fraction=0.0, weight_decay=0.0)
    train(dense, config, data=data_dir, out=tmp_path / "run")
    model = Decoder(dense, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0)
    batches = Batches(TokenData(data_dir), context=16, batch_size=32, seed=0)
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 19)) / 2)
        batch = torch.from_numpy(batches.batch(step))
        logits = model(batch[:, :-1]).logits_BTV
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 257), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    trained = load_model(tmp_path / "run").model
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, trained.get_parameter(name), atol=1e-5), name


def test_accumulation_equals_one_batch(tmp_path, dense, data_dir):
    """In gradient norms too, as AdamW hardly sees their scale; the z-loss is a mean over tokens like the loss."""
    router = RouterSpec(balance="none", z_loss_weight=0.5)
    spec = replace(dense, experts=ExpertsSpec(granularity=2, expansion_rate=4, router=router))
    config = replace(QUICK, tokens=5 * 512, log_every=1, evaluate_every=None)
    train(spec, config, data=data_dir, out=tmp_path / "whole")
    train(spec, replace(config, micro_batch=8), data=data_dir, out=tmp_path / "parts")
    whole, parts = read_metrics(tmp_path / "whole")[:-1], read_metrics(tmp_path / "parts")[:-1]
    for name in ("loss", "grad_norm", "auxiliary_loss", "load_max"):
        expected = [line[name] for line in whole]
        assert [line[name] for line in parts] == pytest.approx(expected, rel=1e-3, abs=1e-3), name
    assert min(line["auxiliary_loss"] for line in whole) > 0.1


def test_metrics_hold_the_curve(tmp_path, moe, data_dir):
    train(moe, QUICK, data=data_dir, out=tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 4, 8, 12, 16, 20]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [8, 16, 20]
    assert training[0]["loss"] > training[-1]["loss"]
    assert training[-1]["tokens"] == 20 * 512
    assert {"learning_rate", "grad_norm", "load_max", "router_entropy", "dropped_share"} <= training[0].keys()


@pytest.mark.parametrize("kind", ["dense", "moe", "expert_choice"])
def test_resumed_run_equals_undisturbed_one(tmp_path, data_dir, kind, request):
    spec = request.getfixturevalue(kind)
    config = replace(QUICK, checkpoint_steps=3)
    undisturbed = train(spec, config, data=data_dir, out=tmp_path / "calm")
    for step in (2, 8, 17):
        train_until(step, spec, config, data=data_dir, out=tmp_path / "stormy")
    record = train(spec, config, data=data_dir, out=tmp_path / "stormy")
    assert read_metrics(tmp_path / "stormy") == read_metrics(tmp_path / "calm")
    assert weights(tmp_path / "stormy") == weights(tmp_path / "calm")
    ignored = {*TIMINGS, "run_id"}
    assert {k: v for k, v in record.items() if k not in ignored} == {
        k: v for k, v in undisturbed.items() if k not in ignored
    }


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "garble_state", "garble_checksums"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, dense, data_dir, caplog, harm):
    config = replace(QUICK, checkpoint_steps=5)
    train(dense, config, data=data_dir, out=tmp_path / "calm")
    train_until(12, dense, config, data=data_dir, out=tmp_path / "run")
    names = [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())]
    assert names == ["step-00000005", "step-00000010"]
    newest = tmp_path / "run/checkpoints/step-00000010"
    victim = newest / "optimizer.safetensors"
    if harm == "truncate":
        os.truncate(victim, 100)
    elif harm == "flip":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    elif harm == "delete":
        victim.unlink()
    elif harm == "garble_state":
        (newest / "state.json").write_text("{")
    else:
        (newest / "checksums.json").write_text("[1]")
    train(dense, config, data=data_dir, out=tmp_path / "run")
    assert "step-00000010 is damaged" in caplog.text
    assert weights(tmp_path / "run") == weights(tmp_path / "calm")
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "calm")


def test_with_every_checkpoint_damaged_it_starts_anew(tmp_path, dense, data_dir):
    train_until(7, dense, replace(QUICK, checkpoint_steps=5), data=data_dir, out=tmp_path / "run")
    os.truncate(tmp_path / "run/checkpoints/step-00000005/model.safetensors", 10)
    with pytest.raises(RunError, match="no sound checkpoint"):
        load_model(tmp_path / "run")
    assert train(dense, QUICK, data=data_dir, out=tmp_path / "run")["steps"] == 20
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 4, 8, 12, 16, 20]


def test_finished_run_returns_its_record_at_once(tmp_path, dense, data_dir, monkeypatch):
    record = train(dense, QUICK, data=data_dir, out=tmp_path / "run")
    interrupt_at(monkeypatch, 0)
    assert train(dense, replace(QUICK, keep_checkpoints=5), data=data_dir, out=tmp_path / "run") == record


def test_another_run_in_the_directory_is_refused(tmp_path, dense, moe, data_dir):
    train(dense, QUICK, data=data_dir, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"config.seed is 0 there and 3 here; give") as caught:
        train(dense, replace(QUICK, seed=3), data=data_dir, out=tmp_path / "run")
    assert "clip" not in str(caught.value)
    with pytest.raises(InputError, match=r"spec.experts is not given there and given here; give"):
        train(moe, QUICK, data=data_dir, out=tmp_path / "run")


def test_two_processes_never_train_in_one_directory(tmp_path, dense, data_dir):
    with pytest.raises(InputError):  # claims nothing, as the data do not fit
        train(replace(dense, vocab_size=10), QUICK, data=data_dir, out=tmp_path / "run")
    (tmp_path / "run").mkdir()
    code = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True);"
        "sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "run/.lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process"):
            train(dense, QUICK, data=data_dir, out=tmp_path / "run")
        holder.kill()
    assert train(dense, QUICK, data=data_dir, out=tmp_path / "run")["status"] == "done"


def test_a_gradient_that_is_not_finite_ends_the_run_as_diverged(tmp_path, dense, data_dir, monkeypatch):
    original = Run._train_step

    def poison(self):
        if self.step == 12:
            with torch.no_grad():
                self.model.final_gain.fill_(float("nan"))
        return original(self)

    monkeypatch.setattr(Run, "_train_step", poison)
    record = train(dense, replace(QUICK, checkpoint_steps=5), data=data_dir, out=tmp_path / "run")
    assert record["status"] == "diverged"
    assert "step 13" in record["error"]
    assert record["steps"] == 13
    assert record["loss"] is None
    assert load_model(tmp_path / "run").step == 10
    assert train(dense, replace(QUICK), data=data_dir, out=tmp_path / "run") == record


def test_a_runaway_loss_ends_the_run_as_diverged(tmp_path, dense, data_dir):
    config = replace(QUICK, learning_rate=30.0, clip=1e9, tokens=100 * 512, schedule="wsd")
    record = train(dense, config, data=data_dir, out=tmp_path / "run")
    assert record["status"] == "diverged"
    assert "above" in record["error"] or "not finite" in record["error"]
    assert record["steps"] < 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 50}, "vocab_size is 50"),
        ({"context": 2**20}, "context 1048576 need"),
    ],
)
def test_spec_that_does_not_fit_the_data(tmp_path, dense, data_dir, change, words):
    config = TrainConfig(tokens=1e8, evaluation_tokens=100)
    with pytest.raises(InputError, match=words):
        train(replace(dense, **change), config, data=data_dir, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_with_files_of_the_same_names_is_left_alone(tmp_path, dense, data_dir):
    content = (data_dir / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"holds manifest.json and \d+ more but no run; give a new"):
        train(dense, QUICK, data=data_dir, out=data_dir)
    assert (data_dir / "manifest.json").read_bytes() == content


def test_a_folder_with_other_files_is_left_alone(tmp_path, dense, data_dir):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("ten years of work")
    with pytest.raises(InputError, match=r"out is .*mine, which holds thesis\.txt but no run; give a new or an empty"):
        train(dense, QUICK, data=data_dir, out=mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match=r"which is a file; a directory is needed"):
        train(dense, QUICK, data=data_dir, out=mine / "thesis.txt")
    (mine / "run.json").write_text('{"my": "notes"}')
    with pytest.raises(InputError, match=r"holds a run\.json that no run of this version wrote"):
        train(dense, QUICK, data=data_dir, out=mine)
    assert (mine / "run.json").read_text() == '{"my": "notes"}'


def test_what_a_study_leaves_in_a_directory_is_no_obstacle(tmp_path, dense, data_dir):
    (tmp_path / "run").mkdir()
    for name in (".claim", ".lock", "failed.json", ".writing-run.json"):
        (tmp_path / "run" / name).write_text("")
    claim(RunDirectory(tmp_path / "run"), dense, QUICK, data_dir)
    assert (tmp_path / "run/config.json").exists()


def claim(directory, spec, config, data_dir):
    directory.claim(spec, config, resolve(spec, config), TokenData(data_dir))


def test_a_directory_that_may_not_be_written_is_one_sentence(tmp_path, dense, data_dir, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    data, plan = TokenData(data_dir), resolve(dense, QUICK)
    for method in ("mkdir", "write_text", "iterdir"):
        directory = RunDirectory(tmp_path / method)
        with monkeypatch.context() as patch:
            patch.setattr(f"pathlib.Path.{method}", refuse)
            with pytest.raises(InputError, match=r"out is .*, which cannot be written: Permission denied\."):
                directory.claim(dense, QUICK, plan, data)


def test_of_two_claims_at_once_one_wins(tmp_path, dense, data_dir, monkeypatch):
    """Both find the directory empty unless they take turns."""
    original, refused = RunDirectory._refuse_foreign_files, []

    def slowly(self):
        original(self)
        time.sleep(0.2)

    def attempt(seed):
        try:
            claim(RunDirectory(tmp_path / "run"), dense, replace(QUICK, seed=seed), data_dir)
        except InputError as error:
            refused.append(str(error))

    monkeypatch.setattr(RunDirectory, "_refuse_foreign_files", slowly)
    threads = [threading.Thread(target=attempt, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (sentence,) = refused
    assert "config.seed is" in sentence


def test_many_differing_settings_are_counted(tmp_path, dense, data_dir):
    claim(RunDirectory(tmp_path / "run"), dense, QUICK, data_dir)
    other = replace(QUICK, seed=3, clip=2.0, schedule="wsd", compile=True, weight_decay=0.0, final_lr_fraction=0.0)
    with pytest.raises(InputError, match=r"config.compile is off there and on here; .*; and 2 more; give") as caught:
        claim(RunDirectory(tmp_path / "run"), dense, other, data_dir)
    assert not set("{}[]") & set(str(caught.value))


def test_a_model_larger_than_the_machine_is_refused_at_once(tmp_path, dense, data_dir):
    huge = replace(dense, d_model=2**40)
    with pytest.raises(RunError, match=r"too little memory for a model of .* parameters"):
        train(huge, replace(QUICK, device="cpu"), data=data_dir, out=tmp_path / "run")


def test_a_disk_that_refuses_is_a_failed_run(tmp_path, dense, data_dir, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("isoflop.train.run.save_checkpoint", refuse)
    with pytest.raises(RunError, match="run cannot be written: No space left on device"):
        train(dense, QUICK, data=data_dir, out=tmp_path / "run")


def test_a_compiler_that_fails_is_a_failed_run(tmp_path, dense, data_dir, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    def compiled(tokens_BT):
        raise InternalTorchDynamoError("no C++ compiler")

    monkeypatch.setattr("torch.compile", lambda model: compiled)
    with pytest.raises(RunError, match=r"torch\.compile failed .*no C\+\+ compiler"):
        train(dense, replace(QUICK, compile=True), data=data_dir, out=tmp_path / "run")


def test_too_little_memory_is_a_failed_run(tmp_path, dense, data_dir, monkeypatch):
    def exhaust(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "_train_step", exhaust)
    with pytest.raises(RunError, match="smaller micro_batch"):
        train(dense, QUICK, data=data_dir, out=tmp_path / "run")


def test_out_that_cannot_be_written(tmp_path, dense, data_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out is .*cannot be written"):
        train(dense, QUICK, data=data_dir, out=tmp_path / "file" / "run")


def test_bfloat16_recomputation_and_thresholds(tmp_path, expert_choice, data_dir):
    config = replace(QUICK, dtype="bfloat16", activation_checkpointing=True)
    record = train(expert_choice, config, data=data_dir, out=tmp_path / "run")
    plain = train(expert_choice, QUICK, data=data_dir, out=tmp_path / "plain")
    assert record["loss"] == pytest.approx(plain["loss"], abs=0.1)
    assert record["loss_sampled"] == pytest.approx(record["loss"], abs=0.3)
    loaded = load_model(tmp_path / "run")
    loaded.model.expert_choice = "threshold"
    assert not loaded.model.training


def test_thresholds_are_calibrated_in_micro_batches_of_the_run(tmp_path, expert_choice, data_dir, monkeypatch):
    """However large the batch, since a whole one may not fit in a forward pass."""
    seen = []
    monkeypatch.setattr("isoflop.train.run.CALIBRATION_TOKENS", 600)
    monkeypatch.setattr("isoflop.train.run.calibrate_thresholds", lambda model, batches: seen.extend(batches))
    monkeypatch.setattr(Run, "_evaluate_as_sampled", lambda self: None)
    train(expert_choice, replace(QUICK, tokens=4096, batch_tokens=2048, micro_batch=8), data=data_dir, out=tmp_path)
    assert [tuple(tokens_BT.shape) for tokens_BT in seen] == [(8, 16)] * 5


def test_every_loss_of_a_noncausal_model_says_so(tmp_path, dense, data_dir):
    router = RouterSpec(kind="expert_choice_noncausal")
    spec = replace(dense, experts=ExpertsSpec(granularity=2, expansion_rate=4, router=router))
    record = train(spec, QUICK, data=data_dir, out=tmp_path / "run")
    assert record["causal"] is False
    assert {line.get("causal") for line in read_metrics(tmp_path / "run")} == {False}
    train(dense, QUICK, data=data_dir, out=tmp_path / "dense")
    assert all("causal" not in line for line in read_metrics(tmp_path / "dense"))


def test_recomputation_changes_nothing(tmp_path, moe, data_dir):
    train(moe, QUICK, data=data_dir, out=tmp_path / "plain")
    train(moe, replace(QUICK, activation_checkpointing=True), data=data_dir, out=tmp_path / "frugal")
    assert weights(tmp_path / "plain") == weights(tmp_path / "frugal")


def test_decay_acts_on_matrices_alone(moe):
    model = Decoder(moe)
    optimizer = build_optimizer(model, TrainConfig(tokens=1), 1e-3)
    decayed = {id(weight) for weight in optimizer.param_groups[0]["params"]}
    for name, weight in model.named_parameters():
        assert (id(weight) in decayed) == (weight.ndim >= 2 and name != "embedding_VD"), name
