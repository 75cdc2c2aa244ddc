"""Runs from wherever people keep them: studies, Weights & Biases, TensorBoard, compressed text."""

import builtins
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from isoflop import InputError
from isoflop.laws import read_runs

MAPPED = {"params_total": "config.model.params", "tokens": "config.tokens", "loss": "summary.eval/loss"}


def wandb_run(root: Path, name: str, config: dict[str, Any], summary: dict[str, Any]) -> None:
    files = root / name / "files"
    files.mkdir(parents=True)
    described = {key: {"desc": None, "value": value} for key, value in config.items()}
    (files / "config.yaml").write_text(yaml.safe_dump({"wandb_version": 1, "_wandb": {"value": {}}, **described}))
    (files / "wandb-summary.json").write_text(json.dumps(summary))


def test_directories_that_wandb_leaves_behind(tmp_path: Path) -> None:
    for i, kind in enumerate(("run", "offline-run", "run")):
        config = {"model": {"params": 10**8 * (i + 1), "name": f"m{i}"}, "tokens": 4e9, "tags": ["a"]}
        summary = {"eval/loss": 3.0 - i / 10, "_step": 100, "_wandb": {"runtime": 9}, "grad": {"_type": "histogram"}}
        wandb_run(tmp_path / "wandb", f"{kind}-2026010{i}_120000-abc{i}", config, summary)
    (tmp_path / "wandb" / "latest-run").symlink_to(tmp_path / "wandb" / "run-20260102_120000-abc2")
    runs = read_runs(tmp_path, columns=MAPPED)
    assert len(runs) == 3
    order = np.argsort(runs["params_total"])
    assert runs["params_total"][order].tolist() == [1e8, 2e8, 3e8]
    assert runs["loss"][order].tolist() == [3.0, 2.9, 2.8]
    assert set(runs["run_id"]) == {"abc0", "abc1", "abc2"}
    assert set(runs["config.model.name"]) == {"m0", "m1", "m2"}
    assert runs["summary._step"].tolist() == [100.0] * 3
    assert not any("_wandb" in name or name.endswith("tags") for name in runs.columns)
    assert any("abc1" in label for label in runs.labels)
    (tmp_path / "wandb" / "run-20260100_120000-abc0" / "files" / "wandb-summary.json").write_text("{")
    with pytest.raises(InputError, match=r"wandb-summary\.json is not JSON"):
        read_runs(tmp_path)


def test_a_table_of_config_and_summary_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "project.csv"
    path.write_text(
        ",summary,config,name\n"
        "0,\"{'eval/loss': 3.1, 'best': {'loss': nan}, 'x': inf, 'note': 'nan it is'}\","
        "\"{'model': {'params': 100000000}, 'tokens': '2B', 'tie': True, 'cap': None}\",brave-sun-1\n"
        '1,"{""eval/loss"": 2.9}","{""model"": {""params"": 2e8}, ""tokens"": ""4B""}",dry-moon-2\n'
    )
    runs = read_runs(path, columns=MAPPED)
    assert runs["tokens"].tolist() == [2e9, 4e9]
    assert runs["params_total"].tolist() == [1e8, 2e8]
    assert runs["loss"].tolist() == [3.1, 2.9]
    assert runs["summary.note"].tolist() == ["nan it is", None]
    assert runs["name"].tolist() == ["brave-sun-1", "dry-moon-2"]
    assert "summary.best.loss" not in runs.columns
    path.write_text("summary,config\n{broken,{}\n")
    with pytest.raises(InputError, match=r"line 2: summary is '{broken', which is no dictionary"):
        read_runs(path)


def test_a_table_from_the_web_page_knows_which_runs_finished(tmp_path: Path) -> None:
    path = tmp_path / "wandb_export.csv"
    path.write_text(
        '"Name","State","params","tokens","train/loss"\n'
        '"a","finished","100M","2B","3.1"\n"b","crashed","200M","4B",""\n"c","finished","400M","8B","2.8"\n'
    )
    runs = read_runs(path, columns={"params_total": "params", "loss": "train/loss"})
    assert runs["status"].tolist() == ["done", "crashed", "done"]
    assert len(runs.usable()) == 2
    assert "status is read from State: finished is done." in runs.notes
    assert read_runs(path, columns={"status": "State"})["status"].tolist() == ["done", "crashed", "done"]
    path.write_text("State,params_total,tokens,loss\nTexas,1e8,2e9,3\nOhio,2e8,2e9,3\n")
    assert "status" not in read_runs(path)


def events(directory: Path, scalars: dict[str, list[tuple[int, float]]], hparams: dict[str, Any] | None = None) -> None:
    """An event file as tensorboard's own writer makes it."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(directory))
    if hparams is not None:
        start = HParamsPluginData()
        for name, value in hparams.items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(start.session_start_info.hparams[name], kind, value)
        about = Summary.Value(tag="_hparams_/session_start_info")
        about.metadata.plugin_data.plugin_name = "hparams"
        about.metadata.plugin_data.content = start.SerializeToString()
        writer.add_event(Event(step=0, summary=Summary(value=[about])))
    for tag, values in scalars.items():
        for step, value in values:
            point = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, summary=point))
    writer.close()


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for i, size in enumerate((1e8, 2e8)):
        curve = [(step, 4.0 - i - step / 100) for step in (0, 50, 100)]
        events(
            tmp_path / f"run-{i}", {"loss/eval": curve, "lr": [(0, 1.0)]}, {"params": size, "tied": True, "act": "silu"}
        )
    events(tmp_path / "apart", {"loss/eval": [(7, 2.5)]})
    events(tmp_path / "apart" / "1700000000", {"hparam/loss": [(0, 2.5)]}, {"params": 4e8})  # as add_hparams does
    events(tmp_path / "empty", {})
    runs = read_runs(tmp_path, columns={"params_total": "params", "loss": "loss/eval"})
    rows = {row["run_id"]: row for row in runs.rows}
    assert set(rows) == {"run-0", "run-1", "apart"}
    assert [rows[name]["loss"] for name in ("run-0", "run-1", "apart")] == pytest.approx([3.0, 2.0, 2.5])
    assert [rows[name]["params_total"] for name in ("run-0", "run-1", "apart")] == [1e8, 2e8, 4e8]
    assert [rows[name]["step"] for name in ("run-0", "run-1", "apart")] == [100, 100, 7]
    assert rows["run-0"]["act"] == "silu"
    assert rows["run-1"]["lr"] == 1.0
    with pytest.raises(InputError, match="without a scalar"):
        read_runs(tmp_path / "empty")


def test_without_the_tensorboard_package_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    original = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'isoflop\[tensorboard\]'"):
        read_runs(tmp_path)


def test_studies_and_other_directories(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "runs.csv").write_text("params_total,tokens,loss\n1e8,2e9,3\n")
    assert read_runs(tmp_path / "study")["tokens"].tolist() == [2e9]
    with pytest.raises(InputError, match=r"a directory without runs\.csv or other runs; readable is a study"):
        read_runs(tmp_path)


def test_compressed_json_lines_and_nested_objects(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl.gz"
    rows = [{"config": {"n": 1e8}, "summary": {"loss": 3.0}, "tokens": 2e9, "shape": [1, 2]}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    runs = read_runs(path, columns={"params_total": "config.n", "loss": "summary.loss"})
    assert (runs["params_total"].tolist(), runs["loss"].tolist()) == ([1e8], [3.0])
    with pytest.raises(InputError, match=r"shape is \[1, 2\], which is not a number"):
        runs.numeric("shape")
    path.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_runs(path)
