"""The command's root: registers the verbs."""

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isoflop import __version__
from isoflop.cli.compare import compare
from isoflop.cli.count import count
from isoflop.cli.fit import fit
from isoflop.cli.laws import laws
from isoflop.cli.next_run import next_run
from isoflop.cli.plan import plan
from isoflop.cli.prepare import prepare
from isoflop.cli.report import report
from isoflop.cli.sample import sample
from isoflop.cli.study import study_app
from isoflop.cli.train import train
from isoflop.cli.valleys import valleys

_TWO_WORDS = "plan next-run"
"""A verb of its own beside `plan`, whose required options a group of commands would ask for in vain."""


class _Verbs(TyperGroup):
    """The verbs; one of them is two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The verb at the head of the arguments, and the rest."""
        if " ".join(args[:2]) == _TWO_WORDS:
            args = [_TWO_WORDS, *args[2:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="isoflop",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long names of options off at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isoflop {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """From a compute budget to the best Mixture-of-Experts Transformer.

    Small runs at equal FLOPs, a law with error bars, a plan, training, sampling.
    """


app.command()(prepare)
app.command()(count)
app.command()(train)
app.command()(sample)
app.command()(fit)
app.command()(compare)
app.command()(laws)
app.command()(valleys)
app.command(epilog=f"Which run to do first, to plan with more certainty: isoflop {_TWO_WORDS} --help")(plan)
app.command(_TWO_WORDS)(next_run)
app.add_typer(study_app, name="study")
app.command()(report)

for registered in (*app.registered_commands, *study_app.registered_commands):
    # The list of verbs shows the whole first paragraph; without this it would be cut off after a few words.
    registered.short_help = " ".join((inspect.getdoc(registered.callback) or "").split("\n\n")[0].split())
