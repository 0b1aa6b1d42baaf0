"""Bytes in and out: checkpoints of a run, and dictionaries in everybody's formats."""

from jaxsae.io.files import Written, load, save

__all__ = ["Written", "load", "save"]
