"""Deterministic pictures for tests: what the golden files were made with."""

from golden_weights import image as picture

__all__ = ["picture"]
