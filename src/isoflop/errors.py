"""The two ways a request can end badly; every room raises these and `cli` maps them to exit codes."""


class InputError(ValueError):
    """The request itself is wrong (exit code 2).

    The message is one sentence that names the field, the value that was given and what is allowed.
    """


class RunError(RuntimeError):
    """The request was sound but could not be carried out (exit code 1)."""
