"""The `isoflop` command: one module a verb, each of which parses, calls and prints.

Exit codes: 0 done, 1 failed, 2 wrong input. Verbs import their rooms inside the function, so that `--help` stays
instant.
"""

import os
import sys
import warnings
from typing import Any

from isoflop.cli._usage import UsageError, explanation
from isoflop.cli.app import app
from isoflop.errors import InputError, RunError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; map the project's two errors, and wrong usage, to exit codes 1 and 2."""
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        _fail(explanation(error), 2)
    except InputError as error:
        _fail(f"error: {error}", 2)
    except RunError as error:
        _fail(f"failed: {error}", 1)
    except KeyboardInterrupt:
        _fail("stopped.", 130)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # which the parser and the tables turn into 1
            raise
        _leave_closed_pipe()
    except BrokenPipeError:
        _leave_closed_pipe()
    sys.exit(code if isinstance(code, int) else 0)


def _leave_closed_pipe() -> None:
    """End well after a reader such as `head` has seen enough, without a word from the interpreter's own flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _fail(line: str, code: int) -> None:
    sys.stderr.write(f"{line}\n")
    sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """One line without the place in the code, which says nothing to whoever typed a command."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
