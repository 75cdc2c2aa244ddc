"""The `isoflop` command: one module a verb, each of which parses, calls and prints.

Exit codes: 0 done, 1 failed, 2 wrong input. Verbs import their rooms inside the function, so that `--help` stays
instant.
"""

import sys

from isoflop.cli.app import app
from isoflop.errors import InputError, RunError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; map the project's two errors to exit codes 2 and 1."""
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except RunError as error:
        sys.stderr.write(f"failed: {error}\n")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
