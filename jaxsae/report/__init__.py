"""One page to look at a dictionary: curves, numbers, and the latents with the text that turns them on."""

from jaxsae.report.build import build_report, evaluated
from jaxsae.report.subject import Subject, open_subject

__all__ = ["Subject", "build_report", "evaluated", "open_subject"]
