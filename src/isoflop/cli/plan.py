"""`isoflop plan`: from a budget and a law to the architecture to train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from isoflop.cli._common import JsonFlag, print_json
from isoflop.cli._usage import options_as_typed
from isoflop.errors import InputError

if TYPE_CHECKING:
    from isoflop.laws import Fit, Law
    from isoflop.planner import Machine, SpeedTable

_OPTIONS: Final = {
    "device_hours": "--gpu-hours",
    "granularities": "--granularity",
    "expansion_rates": "--expansion-rate",
    "templates": "--template",
    "spec_out": "--spec-out",
    "plots": "--plots",
} | {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("flops", "hours", "hardware", "devices", "utilisation", "measured_flops", "price", "carbon_intensity", "pue"),
        *("speed", "convention", "vocab_size", "context", "tokens_available", "repeat", "max_epochs"),
        *("max_params_total", "max_params_active", "memory_per_device", "micro_batch", "expert_parallel"),
        *("inference_tokens", "max_decode_ms", "multiple", "head_dim", "within", "ratio", "allocation"),
    )
}
"""Arguments of the library, with which its sentences begin → options of the command line."""


def plan(
    law: Annotated[
        list[str],
        typer.Option(
            help="Published law, or a JSON file with a fit or several (fit.json, fits.json); may be repeated."
        ),
    ],
    flops: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Training budget, such as 1.93e20; or give hours of hardware.")
    ] = None,
    gpu_hours: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Budget as hours of one device, summed over devices.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Budget as hours of all devices together.")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(help="Device: a100-40-sxm, a100-80-sxm, h100-sxm, h200-sxm, b200-sxm, cpu, or a .yaml file."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Devices that share the training; with hardware, its memory is then a limit.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Share of the device's peak that training reaches; default: 0.35, assumed.")
    ] = None,
    measured_flops: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="FLOP/s that a device was seen to train with, in place of the share."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of a device-hour, in any currency.")] = None,
    carbon_intensity: Annotated[float | None, typer.Option(help="Of electricity, g CO2e/kWh.")] = None,
    pue: Annotated[float | None, typer.Option(help="Energy of the site / of the devices; default: 1.58.")] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            help="Speed of experts by width: cpu, a .json file of benchmarks/expert_speed.py, or none. "
            "Default: cpu on cpu, else none."
        ),
    ] = None,
    convention: Annotated[
        str | None, typer.Option(help="How FLOPs are counted: krajewski, 6ND, exact, …; default: the law's.")
    ] = None,
    granularity: Annotated[list[int] | None, typer.Option(help="Consider this granularity; may be repeated.")] = None,
    expansion_rate: Annotated[
        list[float] | None, typer.Option(help="Consider this expansion rate; may be repeated.")
    ] = None,
    template: Annotated[
        list[Path] | None,
        typer.Option(help="Spec file; models like it, of any size, are candidates; may be repeated."),
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Vocabulary of the models, where no template says it.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a sequence, where no template says it.")] = None,
    tokens_available: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Distinct training tokens; one epoch at most.")
    ] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="Tokens may repeat, and are then worth less.")] = False,
    max_epochs: Annotated[float | None, typer.Option(help="With --repeat: most times that a token is seen.")] = None,
    max_params_total: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Most parameters (non-embedding).")
    ] = None,
    max_params_active: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Most parameters that a token uses (non-embedding).")
    ] = None,
    memory_per_device: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Bytes that training may take of a device, such as 80G, or none; sharded over devices.",
        ),
    ] = None,
    micro_batch: Annotated[int, typer.Option(help="Sequences in one forward of a device; for memory alone.")] = 1,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Blocks are recomputed; for memory alone.")
    ] = False,
    expert_parallel: Annotated[
        int | None, typer.Option(help="Devices that experts are spread over; must divide their number.")
    ] = None,
    inference_tokens: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Tokens to be served, whose FLOPs the budget pays too.")
    ] = None,
    max_decode_ms: Annotated[
        float | None, typer.Option(help="Longest time of a generated token, ms, by the device's memory bandwidth.")
    ] = None,
    multiple: Annotated[
        int | None, typer.Option(help="Widths of models and experts are multiples of this; default: 64 on a GPU.")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(help="Size of a head, such as 64 or 128.")] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|best",
            help="Build models whose experts take this many times the FLOPs of attention, at equal FLOPs per token, or "
            "the best ratio by --allocation (by the law itself, if it reads the ratio), held within the ratios that "
            "were run; with --head-dim the number of heads moves, not their size. Losses are then those of the "
            "template's shapes and what the allocation law says of the two ratios: a law of N would count the "
            "parameters that the ratio buys twice. Default: the template's shapes.",
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Law of the best ratio, whose convention --ratio is counted in: published, or what `isoflop valleys "
            "--out` wrote; default: li-2026.",
        ),
    ] = None,
    within: Annotated[float, typer.Option(help="Nats above the best that count as near-optimal.")] = 0.002,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Write figures of the plan there (PNG and SVG).")
    ] = None,
    spec_out: Annotated[
        Path | None, typer.Option(help="Write the best model's spec to this .yaml or .json file.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Rank the architectures that a training budget could buy by their predicted loss."""
    from isoflop import planner
    from isoflop.cli._plan import print_answer, print_plan, training
    from isoflop.cli._plan_laws import best_ratio_of, labelled, law_file, read_laws, study_templates
    from isoflop.cli.train import parse_number
    from isoflop.planner import Template
    from isoflop.spec import load_spec, save_spec

    with options_as_typed(_OPTIONS):
        budgets = [name for name, text in (("flops", flops), ("gpu-hours", gpu_hours), ("hours", hours)) if text]
        if len(budgets) > 1:
            raise InputError(f"budget: --{' and --'.join(budgets)} are given; give exactly one.")

        def number(name: str, text: str | None) -> float | None:
            return None if text is None else parse_number(name, text)

        if devices is not None and hardware is None and measured_flops is None:
            raise InputError(f"--devices is {devices}, but --hardware is not given; say which, such as h100-sxm.")
        for option, value in (("--context", context), ("--vocab-size", vocab_size)):
            if template and value is not None:
                raise InputError(f"{option} is {value}, but --template says it; give one of the two.")
        if spec_out is not None and spec_out.suffix not in (".yaml", ".yml", ".json"):
            raise InputError(f"--spec-out is {spec_out}; it must end in .yaml, .yml or .json.")
        machine = _machine(
            hardware, devices, utilisation, number("measured_flops", measured_flops), price, carbon_intensity, pue
        )
        memory: float | None = None
        if memory_per_device not in (None, "none"):
            memory = number("memory_per_device", memory_per_device)
        elif memory_per_device is None and devices is not None and machine is not None and machine.hardware is not None:
            memory = machine.hardware.memory_bytes
        repeated = next((each for each in law if law.count(each) > 1), None)
        if repeated is not None:
            raise InputError(f"law {repeated} is given twice; give it once.")
        read: list[tuple[Path, list[tuple[str, Law | Fit]]]] = []
        templates = [Template.like(load_spec(path), path.stem) for path in template or []]
        spacing = planner.SPACING
        for each in law:
            file = law_file(each)
            found = read_laws(each, file)
            read.append((file, found))
            if (
                not template
                and vocab_size is None
                and file.name == "fits.json"
                and (file.parent / "study.yaml").exists()
            ):
                known, spacing = study_templates(file.parent, dict(found))
                templates += known
        laws = labelled(read)
        only = next(iter(laws.values()))
        if len(laws) == 1 and only.form.target != "loss":
            if flops is None:
                raise InputError("flops is not given; what this law predicts depends on training FLOPs.")
            given = {
                **{"--gpu-hours": gpu_hours, "--hours": hours, "--hardware": hardware, "--devices": devices},
                **{"--utilisation": utilisation, "--measured-flops": measured_flops, "--price": price},
                **{"--carbon-intensity": carbon_intensity, "--pue": pue, "--speed": speed, "--template": template},
                **{"--convention": convention, "--vocab-size": vocab_size, "--context": context},
                **{"--tokens-available": tokens_available, "--max-epochs": max_epochs},
                **{"--max-params-total": max_params_total, "--max-params-active": max_params_active},
                **{"--memory-per-device": memory_per_device, "--expert-parallel": expert_parallel},
                **{"--inference-tokens": inference_tokens, "--max-decode-ms": max_decode_ms},
                **{"--multiple": multiple, "--head-dim": head_dim, "--plots": plots, "--spec-out": spec_out},
                **{"--ratio": ratio, "--allocation": allocation},
                **{"--repeat": repeat or None, "--activation-checkpointing": activation_checkpointing or None},
            }
            idle = [option for option, value in given.items() if value not in (None, [])]
            if idle:
                raise InputError(
                    f"{idle[0]} is given, but {next(iter(laws))} predicts {only.form.target}, not a loss, so that "
                    "there is no model to plan; leave it out, or give a law of the loss."
                )
            answer = planner.answer(
                only, flops=parse_number("flops", flops), expansion_rates=expansion_rate, granularities=granularity
            )
            if json:
                print_json(answer.to_dict())
            else:
                print_answer(answer)
            return
        if not budgets:
            raise InputError("budget: none is given; give --flops, or --gpu-hours or --hours with --hardware.")
        result = planner.plan(
            flops=number("flops", flops),
            device_hours=number("gpu_hours", gpu_hours),
            hours=number("hours", hours),
            machine=machine,
            speed=_speed(speed, hardware),
            law=laws,
            convention=convention,
            templates=templates,
            granularities=granularity,
            expansion_rates=expansion_rate,
            vocab_size=vocab_size,
            context=context,
            spacing=spacing,
            multiple=multiple,
            head_dim=head_dim,
            ratio=_ratio(ratio),
            allocation=None if allocation is None else best_ratio_of(allocation),
            tokens_available=number("tokens_available", tokens_available),
            repeat=repeat,
            max_epochs=max_epochs,
            max_params_total=number("max_params_total", max_params_total),
            max_params_active=number("max_params_active", max_params_active),
            memory_per_device=memory,
            micro_batch=micro_batch,
            activation_checkpointing=activation_checkpointing,
            expert_parallel=expert_parallel,
            inference_tokens=number("inference_tokens", inference_tokens),
            max_decode_ms=max_decode_ms,
        )
        result.near_optimal(within)
        if spec_out is not None:
            try:
                save_spec(result.to_train.spec, spec_out)
            except OSError as error:
                raise InputError(f"spec_out is {spec_out}, which cannot be written: {error.strerror}.") from None
        figures: list[Path] = []
        if plots is not None:
            from isoflop.report import write_plan_figures

            figures = write_plan_figures(result, laws, plots)
        how = training(result, spec_out)
        if json:
            written: dict[str, Any] = {"figures": [str(path) for path in figures]} if figures else {}
            written |= {} if spec_out is None else {"spec_out": str(spec_out)}
            print_json({**result.to_dict(within), "training": how, **written})
            return
        print_plan(result, within, how, ", ".join(law))
        if spec_out is not None:
            typer.echo(f"wrote: {spec_out}")
        for path in figures:
            if path.suffix == ".png":
                typer.echo(f"figure: {path}")


def _ratio(text: str | None) -> "float | Literal['best'] | None":
    """What --ratio says.

    Raises:
        InputError: if it is neither a number nor best.
    """
    from isoflop.laws import parse_number

    word = None if text is None else text.strip().lower()
    if word is None or word == "best":
        return None if word is None else "best"
    value = parse_number(word)
    if value is None:
        raise InputError(f"ratio is {text!r}; it must be a positive number or best.")
    return value


def _machine(
    hardware: str | None,
    devices: int | None,
    utilisation: float | None,
    measured_flops: float | None,
    price: float | None,
    carbon_intensity: float | None,
    pue: float | None,
) -> "Machine | None":
    """What it runs on, if anything says so.

    Raises:
        InputError: if what needs hardware is given without.
    """
    from isoflop.planner import Machine
    from isoflop.planner import hardware as known

    if hardware is None:
        named = (("utilisation", utilisation), ("price", price), ("carbon_intensity", carbon_intensity), ("pue", pue))
        for name, value in named:
            if value is not None and (measured_flops is None or name in ("utilisation", "carbon_intensity", "pue")):
                raise InputError(f"{name} is {value:g}, but hardware is not given; say which, such as h100-sxm.")
        if devices is None and measured_flops is None:
            return None
    return Machine(
        hardware=None if hardware is None else known(hardware),
        devices=1 if devices is None else devices,
        utilisation=utilisation,
        measured_flops=measured_flops,
        price=price,
        carbon_intensity=None if carbon_intensity is None else carbon_intensity / 1000,
        pue=pue,
    )


def _speed(name: str | None, hardware: str | None) -> "SpeedTable | None":
    """The table of experts' speeds: that of the option, else the one that ships for this hardware."""
    from isoflop.planner import load_speed

    if name is None:
        name = "cpu" if hardware == "cpu" else "none"
    return None if name == "none" else load_speed(name)
