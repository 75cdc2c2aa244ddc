"""The command's root: registers the verbs."""

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
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """From a compute budget to the best Mixture-of-Experts Transformer.

    Small runs at equal FLOPs, a law with error bars, a plan, training, sampling.
    """
    if version:
        typer.echo(f"isoflop {__version__}")
        raise typer.Exit


app.command()(prepare)
app.command()(count)
app.command()(train)
app.command()(sample)
app.command()(fit)
app.command()(plan)
app.add_typer(study_app, name="study")
app.command()(report)
