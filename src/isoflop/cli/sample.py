"""`isoflop sample`: text from a trained model."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli._common import JsonFlag, print_json
from isoflop.errors import InputError, RunError

_NEW_TOKENS = 200
_MOST_CONTINUATIONS = 1024


def sample(
    run: Annotated[Path, typer.Argument(help="Run directory of `isoflop train`, or one of its checkpoints.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text to continue; empty: the start of a document.")] = "",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", help=f"Tokens to generate; default: {_NEW_TOKENS}, or as many as the context still holds."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="NUMBER", help="0 is greedy; higher is more varied.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(metavar="NUMBER", help="Draw from the smallest set of tokens with this probability.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="The same seed gives the same text.")] = 0,
    n: Annotated[
        int, typer.Option(metavar="NUMBER", help=f"Continuations to generate, at most {_MOST_CONTINUATIONS}.")
    ] = 1,
    depth_capacity: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Share of the tokens that depth-routed blocks compute: less is faster. Default: as trained.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Device such as cpu or cuda; default: cuda if there is one.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Continue a text with a trained model, up to the end of the document or --max-new-tokens."""
    if not 1 <= n <= _MOST_CONTINUATIONS:
        raise InputError(f"n is {n}; it must be from 1 to {_MOST_CONTINUATIONS}.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    from rich.console import Console

    from isoflop.sample import generate
    from isoflop.train import load_model
    from isoflop.train.device import choose_device, reporting_lack_of_memory

    loaded = load_model(run, device=choose_device(device))
    model, tokenizer, end = loaded.model, loaded.tokenizer, loaded.manifest.end_of_document
    experts = [layer.router for layer in model.moe_layers if layer.router.is_expert_choice]
    calibrated = [router.is_calibrated() for router in experts] + [r.is_calibrated() for r in model.depth_routers]
    if not all(calibrated):
        raise RunError(
            f"{run} is {'an expert-choice' if experts else 'a depth-routed'} model at step {loaded.step} of an "
            f"unfinished run; the thresholds by which its tokens are chosen when sampling are set after training."
        )
    model.decisions = "sampled"
    if depth_capacity is not None:
        model.set_depth_capacity(depth_capacity)
    try:
        tokens = tokenizer.encode(prompt) or [end]
    except UnicodeEncodeError:
        raise InputError("prompt is not valid Unicode text.") from None
    room = _room(prompt, len(tokens), max_new_tokens, loaded.spec.context)
    max_new_tokens = min(_NEW_TOKENS, room) if max_new_tokens is None else max_new_tokens
    shown = Console(stderr=True).status("sampling") if sys.stderr.isatty() else nullcontext()
    with shown, reporting_lack_of_memory(f"n={n} continuations of {max_new_tokens} tokens; give a smaller n"):
        rows = generate(
            model,
            [tokens] * n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=end,
        )
    texts = [tokenizer.decode(row) for row in rows]
    if json:
        samples = [{"text": text, "tokens": len(row)} for text, row in zip(texts, rows, strict=True)]
        settings = {"temperature": temperature, "top_p": top_p, "seed": seed, "step": loaded.step}
        print_json({"run": str(run), "prompt": prompt, "samples": samples, **settings})
        return
    for number, text in enumerate(texts, start=1):
        if n > 1:
            sys.stdout.write(f"--- {number} of {n}\n")
        sys.stdout.write(f"{prompt}{text}\n")


def _room(prompt: str, length: int, wanted: int | None, context: int) -> int:
    """Tokens that the context holds after a prompt of `length` tokens.

    Raises:
        InputError: if it holds none, or fewer than are wanted.
    """
    room = context - length
    if room < 1:
        raise InputError(
            f"prompt has {length} tokens; it can have at most {context - 1}, one less than the model's context of "
            f"{context}: give a shorter one."
        )
    if wanted is not None and wanted > room:
        after = f"a prompt of {length} tokens" if prompt else "the start of a document, which is one token,"
        raise InputError(
            f"max_new_tokens is {wanted}; after {after} the model's context of {context} holds at most {room} more."
        )
    return room
