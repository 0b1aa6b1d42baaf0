"""Bytes in and out: checkpoints of a run, and dictionaries in everybody's formats."""

from jaxsae.io.files import Written, load, save
from jaxsae.io.formats._registry import find, formats
from jaxsae.io.placement import place

__all__ = ["Written", "find", "formats", "load", "place", "save"]
