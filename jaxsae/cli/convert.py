"""`jaxsae convert`: a dictionary from one format to another, checked by reading the result back."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxsae.data.store import Folder
from jaxsae.errors import FormatError, JaxsaeError
from jaxsae.io import find, load, save
from jaxsae.io.compare import compare
from jaxsae.io.formats._registry import format_called

CODES_TOLERANCE, OUTPUT_TOLERANCE = 1e-5, 2e-5


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a dictionary, or every dictionary below a folder, and prove that the result computes the same.

    The result is written beside its place, read back, and compared with the source on random and on edge inputs; only
    if they agree does it take its place.  What was found is written to NAME.convert.json beside it.

    Attributes:
        src: a dictionary of any readable format, a folder of many, or hf://owner/repo/path.
        dst: where to write: a folder, or for formats of one file that file.
        to: format to write, e.g. sae_lens; docs/formats.md lists them.
        source_format: read as this format; needed only where the files of two lie together.
        selection: which selection of a batch top-k checkpoint is meant: threshold or batch.
        rows: random rows of the comparison.
        codes_tolerance: largest difference of a code, relative to its row.
        output_tolerance: largest difference of an output, relative to its row.
        seed: of the random rows.
    """

    src: Annotated[str, tyro.conf.Positional]
    dst: Annotated[str, tyro.conf.Positional]
    to: str
    source_format: str | None = None
    selection: str | None = None
    rows: int = 256
    codes_tolerance: float = CODES_TOLERANCE
    output_tolerance: float = OUTPUT_TOLERANCE
    seed: int = 0

    def run(self) -> dict[str, Any]:
        """Converts, prints a line per dictionary, and returns what the JSON file holds.

        Raises:
            FormatError: nothing to convert, a dictionary the format cannot express, or a result that differs.
        """
        format_called(self.to, write=True)
        if Folder(self.dst).remote:
            raise FormatError(f"{self.dst!r}: expected a folder or file of this machine; convert it here and copy it")
        many, damaged = self._many()
        if not many:
            result = self._one(self.src, self._target)
            _write_json(self._target, result)
            _show(result)
            return result
        return self._all(many, damaged)

    @property
    def _target(self) -> Path:
        return Path(self.dst.removeprefix("file://"))

    def _many(self) -> tuple[list[Path], list[FormatError]]:
        """The dictionaries below a folder that is not one itself, and what is wrong with files that might be one."""
        damaged: list[FormatError] = []
        if not os.path.isdir(self.src) or self.source_format is not None:
            return [], damaged
        found = find(self.src, damaged)
        return ([] if found in ([Path(self.src)], []) else found), damaged

    def _all(self, sources: list[Path], damaged: list[FormatError]) -> dict[str, Any]:
        from jaxsae.cli._stages import stages

        results: list[dict[str, Any]] = []
        failed = [{"source": self.src, "error": str(e)} for e in damaged]
        with stages() as progress:
            for i, source in enumerate(sources):
                inside = source.relative_to(self.src)
                target = self._target / (inside.with_suffix("") if source.is_file() else inside)
                try:
                    results.append(self._one(str(source), target))
                except JaxsaeError as e:
                    failed.append({"source": str(source), "error": str(e)})
                progress("convert", i + 1, len(sources))
        summary = {"converted": results, "failed": failed}
        _write_json(self._target, summary)
        for result in results:
            _show(result)
        if failed:
            raise FormatError(
                f"{len(failed)} of {len(sources) + len(damaged)} dictionaries were not converted; the first: "
                f"{failed[0]['source']!r}: {failed[0]['error']}"
            )
        return summary

    def _one(self, source: str, target: Path) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.selection is None else {"selection": self.selection}
        sae = load(source, format=self.source_format, **options)
        with _beside(target) as folder:
            place = Path(folder) / target.name
            written = save(sae, place, self.to)
            back = load(place, format=self.to)
            found = compare(sae, back, written.latent_scale, self.rows, self.seed)
            self._judge(source, asdict(found))
            _move(place, target, lambda: save_conflict(target, self.to))
        return {
            "source": source,
            "from": sae.meta.get("source_format", "jaxsae"),
            "path": str(target),
            "to": self.to,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "folded": list(written.folded),
            "folded_on_reading": list(sae.meta.get("folded", ())),
            **asdict(found),
        }

    def _judge(self, source: str, found: dict[str, float]) -> None:
        if found["codes"] > self.codes_tolerance or found["reconstruction"] > self.output_tolerance:
            raise FormatError(
                f"{source!r} as {self.to} differs from itself: codes by {found['codes']:.1e} (allowed "
                f"{self.codes_tolerance:.0e}), outputs by {found['reconstruction']:.1e} (allowed "
                f"{self.output_tolerance:.0e}), support agreement {found['support_agreement']:.6f}; nothing was written"
            )


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[str]:
    """A folder on the disk of the target, for the while.

    Raises:
        FormatError: none can be made there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-")
    except OSError as e:
        raise FormatError(f"{str(target)!r} cannot be written: {e.strerror or e}; choose another place") from e
    with made as folder:
        yield folder


def save_conflict(target: Path, to: str) -> None:
    """Refuses a folder that holds a dictionary of another format.

    Raises:
        FormatError: it does.
    """
    from jaxsae.io.formats._listing import Listing
    from jaxsae.io.formats._registry import recognised

    others = [n for n in recognised(Listing(target)) if n != to] if target.is_dir() else []
    if others:
        raise FormatError(f"{str(target)!r} holds files of the format {others[0]}: expected a new folder")


def _move(place: Path, target: Path, check: Callable[[], None]) -> None:
    """A finished folder or file to where it belongs; the sidecar of a single file goes along."""
    check()
    if place.is_dir():
        target.mkdir(exist_ok=True)
        for inner in sorted(place.rglob("*")):
            if inner.is_file():
                (target / inner.relative_to(place)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(inner, target / inner.relative_to(place))
        return
    for inner in sorted(place.parent.iterdir()):
        os.replace(inner, target.parent / inner.name)


def _write_json(target: Path, result: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as f:
        f.write(text)
    shutil.move(f.name, target.with_name(f"{target.name}.convert.json"))


def _show(result: dict[str, Any]) -> None:
    print(f"{result['source']}  ({result['from']})  ->  {result['path']}  ({result['to']})")
    print(
        f"  {result['d_sae']} latents of width {result['d_in']}, {result['rows']} rows, {result['ties']} ties left out"
    )
    print(
        f"  largest difference: codes {result['codes']:.1e}, outputs {result['reconstruction']:.1e}; "
        f"support agreement {result['support_agreement']:.6f}"
    )
    for note in result["folded"]:
        print(f"  folded: {note}")
