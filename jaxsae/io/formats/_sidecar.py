"""`jaxsae.json` beside formats that have no room for a remark: who wrote the file, from what, and what was folded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jaxsae
from jaxsae.io.formats._base import Notes
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import SAE

SIDECAR = "jaxsae.json"


def remarks(format: str, sae: SAE, notes: Notes) -> dict[str, Any]:
    """What stands in the side file."""
    folded = [*sae.meta.get("folded", ()), *notes.all]
    source = {"format": sae.meta.get("source_format"), "host": sae.meta.host, "site": sae.meta.site}
    return {"written_by": f"jaxsae {jaxsae.__version__}", "as": format, "source": source, "folded": folded}


def write_with_notes(
    file: Path,
    pieces: Iterable[bytes | memoryview],
    format: str,
    sae: SAE,
    notes: Notes,
    others: Mapping[str, Iterable[bytes | memoryview]] | None = None,
) -> None:
    """Writes a file of weights, others that belong to it, and the remarks."""
    files = {file.name: pieces, **(others or {}), SIDECAR: as_json(remarks(format, sae, notes))}
    write_files(file.parent, files)
