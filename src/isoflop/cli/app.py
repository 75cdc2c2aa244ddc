"""The command's root: registers the verbs."""

import inspect
from typing import Annotated

import typer

from isoflop import __version__
from isoflop.cli.count import count
from isoflop.cli.fit import fit
from isoflop.cli.plan import plan
from isoflop.cli.prepare import prepare
from isoflop.cli.report import report
from isoflop.cli.sample import sample
from isoflop.cli.study import study_app
from isoflop.cli.train import train

app = typer.Typer(
    name="isoflop",
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
app.command()(plan)
app.add_typer(study_app, name="study")
app.command()(report)

for registered in (*app.registered_commands, *study_app.registered_commands):
    # The list of verbs shows the whole first paragraph; without this it would be cut off after a few words.
    registered.short_help = " ".join((inspect.getdoc(registered.callback) or "").split("\n\n")[0].split())
