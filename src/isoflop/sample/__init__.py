"""Cached, causal generation: continue token sequences with a trained `Decoder`."""

from isoflop.sample.generate import generate

__all__ = ["generate"]
