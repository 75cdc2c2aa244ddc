"""Models in and out of other libraries' formats. Imports the specs and `isoflop.nn` alone; the other library is loaded
when it is needed, so that a plain install can do without."""

from isoflop.interop.llama import from_transformers

__all__ = ["from_transformers"]
