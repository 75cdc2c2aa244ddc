"""`isoflop train`: one run, from a spec and a budget to its record."""

import ast
import dataclasses
import inspect
import json as json_module
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from isoflop.cli._common import JsonFlag, print_table, si
from isoflop.errors import InputError
from isoflop.train.config import TrainConfig

_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_number(name: str, text: str) -> float:
    """The value of option `name` as people write numbers: 1e13, 5M, 4.37B, 200k.

    Raises:
        InputError: if it is not a number.
    """
    word = text.strip().replace("_", "").replace(",", "")
    factor = _FACTORS.get(word[-1:].lower(), 1.0)
    try:
        return float(word if factor == 1.0 else word[:-1]) * factor
    except ValueError:
        raise InputError(f"{name} is {text!r}; it must be a number such as 1e13, 5M or 4.37B.") from None


def parse_whole(name: str, text: str) -> int:
    """As parse_number, for whole numbers."""
    value = parse_number(name, text)
    if not value.is_integer():
        raise InputError(f"{name} is {text!r}; it must be a whole number.")
    return int(value)


def _field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


_DOCS = _field_docs(TrainConfig)
_HINTS = get_type_hints(TrainConfig)
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


def _option(name: str, metavar: str | None = None) -> Any:
    hint = _HINTS[name]
    kinds = {kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)}
    metavar = metavar or ("NUMBER" if kinds & {int, float} else "NAME" if str in kinds else None)
    if get_origin(hint) is Literal:
        metavar = "|".join(get_args(hint))
    elif get_origin(hint) is tuple:
        metavar = "NUMBER NUMBER"
    return typer.Option(help=_DOCS[name], show_default=_DEFAULTS[name] is not None, metavar=metavar)


def train(
    spec: Annotated[Path, typer.Option(metavar="FILE", help="Spec file of the model (.yaml or .json).")],
    data: Annotated[Path, typer.Option(metavar="DIRECTORY", help="Data directory, as `isoflop prepare` writes it.")],
    out: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="Run directory; an interrupted run in it is continued.")
    ],
    flops: Annotated[str | None, _option("flops")] = None,
    tokens: Annotated[str | None, _option("tokens")] = None,
    tokens_per_parameter: Annotated[str | None, _option("tokens_per_parameter")] = None,
    batch_tokens: Annotated[str | None, _option("batch_tokens")] = None,
    micro_batch: Annotated[int | None, _option("micro_batch")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate")] = None,
    schedule: Annotated[str, _option("schedule")] = TrainConfig.schedule,
    warmup_fraction: Annotated[float, _option("warmup_fraction")] = TrainConfig.warmup_fraction,
    final_lr_fraction: Annotated[float, _option("final_lr_fraction")] = TrainConfig.final_lr_fraction,
    decay_fraction: Annotated[float, _option("decay_fraction")] = TrainConfig.decay_fraction,
    weight_decay: Annotated[float, _option("weight_decay")] = TrainConfig.weight_decay,
    betas: Annotated[tuple[float, float], _option("betas")] = TrainConfig.betas,
    clip: Annotated[float, _option("clip")] = TrainConfig.clip,
    dtype: Annotated[str, _option("dtype")] = TrainConfig.dtype,
    compile: Annotated[bool, _option("compile")] = TrainConfig.compile,
    activation_checkpointing: Annotated[
        bool, _option("activation_checkpointing")
    ] = TrainConfig.activation_checkpointing,
    init: Annotated[str | None, _option("init", "PATH")] = None,
    seed: Annotated[int, _option("seed")] = TrainConfig.seed,
    evaluation_tokens: Annotated[str, _option("evaluation_tokens")] = str(TrainConfig.evaluation_tokens),
    evaluate_every: Annotated[int | None, _option("evaluate_every")] = None,
    log_every: Annotated[int, _option("log_every")] = TrainConfig.log_every,
    checkpoint_seconds: Annotated[str, _option("checkpoint_seconds")] = f"{TrainConfig.checkpoint_seconds:g}",
    checkpoint_steps: Annotated[int | None, _option("checkpoint_steps")] = None,
    keep_checkpoints: Annotated[int, _option("keep_checkpoints")] = TrainConfig.keep_checkpoints,
    threads: Annotated[int | None, _option("threads")] = None,
    device: Annotated[str | None, _option("device")] = None,
    json: JsonFlag = False,
) -> None:
    """Train a model for a budget of FLOPs, tokens, or tokens per parameter; started again, it resumes.

    With --json the last line of stdout is the run record. Exits 1 if the run diverged.
    """
    arguments = dict(locals())
    values = {name: arguments[name] for name in _DEFAULTS}
    for name in ("flops", "tokens", "tokens_per_parameter"):
        values[name] = None if values[name] is None else parse_number(name, values[name])
    seconds = values["checkpoint_seconds"]
    values["checkpoint_seconds"] = None if seconds == "none" else parse_number("checkpoint_seconds", seconds)
    for name in ("batch_tokens", "evaluation_tokens"):
        values[name] = None if values[name] is None else parse_whole(name, values[name])
    config = TrainConfig(**values)
    from isoflop.spec import load_spec
    from isoflop.train import train as run

    model = load_spec(spec)
    for sentence in model.warnings:
        warnings.warn(sentence, stacklevel=1)
    try:
        record = run(model, config, data=data, out=out)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; the same command continues where {out} stopped.\n")
        raise typer.Exit(130) from None
    if json:
        sys.stdout.write(json_module.dumps(record) + "\n")
    else:
        _print_record(record, out)
    if record["status"] != "done":
        sys.stderr.write(f"failed: the run diverged: {record['error']}\n")
        raise typer.Exit(1)


def _print_record(record: dict[str, Any], out: Path) -> None:
    loss = record["loss"]
    rows = [["status", record["status"]]]
    sampled = record["loss_as_trained"] is not None
    if loss is not None:
        spread = "" if record["loss_std"] is None else f" ± {record['loss_std']:.4f}"
        rows += [
            ["held-out loss, nats/token" + ("" if record["causal"] else " (non-causal)"), f"{loss:.4f}{spread}"],
            ["bits per byte", f"{record['bits_per_byte']:.4f}"],
        ]
    if sampled:
        rows += [
            ["  choosing as trained", f"{record['loss_as_trained']:.4f}"],
            ["  choosing token by token, as sampled", f"{record['loss_sampled']:.4f}"],
        ]
    if record["kept_share"] is not None:
        rows.append(["tokens that routed blocks compute, as sampled", f"{record['kept_share']:.1%}"])
    rows += [
        ["parameters, active / total (non-embedding)", f"{si(record['params_active'])} / {si(record['params_total'])}"],
        ["tokens", f"{si(record['tokens'])} ({record['epochs']:.2f} epochs)"],
        ["training FLOPs", f"{record['flops']:.3g}"],
        ["steps × batch", f"{record['steps']:,} × {record['batch_tokens']:,} tokens"],
        ["learning rate", f"{record['learning_rate']:.3g}"],
        ["time", f"{record['wall_seconds']:.1f} s"],
        ["speed", f"{si(record['tokens_per_second'])} tokens/s, {si(record['flops_per_second'])} FLOP/s"],
    ]
    print_table(str(out), ["run", ""], rows)
