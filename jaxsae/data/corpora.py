"""Where text comes from: named corpora, text files, JSON lines, parquet files, Hugging Face datasets.

A corpus is a sequence of documents that can be asked for by number; the number is the document's identity.
"""

import csv
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

from jaxsae import packages
from jaxsae.errors import ConfigError, DataError, closest

DocumentRule = Literal["file", "line", "blank_line"]
_HUB = "hf://datasets/"


class Corpus(Sequence[str]):
    """Documents by number.

    Attributes:
        identity: name, number of documents and a digest; kept with a cache.
    """

    def __init__(self, name: str, count: int, get: Callable[[int], str], digest: str):
        if not count:
            raise DataError(f"the corpus {name!r} holds no document; expected at least one with text")
        self._get, self._count = get, count
        self.identity: dict[str, Any] = {"name": name, "documents": count, "digest": digest}

    @classmethod
    def of(cls, texts: Sequence[str], name: str = "texts") -> "Corpus":
        """A corpus from texts in memory."""
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        return cls(name, len(texts), texts.__getitem__, digest)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._get(int(index))


def open_corpus(
    name: str, field: str = "text", documents: DocumentRule = "file", split: str = "train", data_format: str = ""
) -> Corpus:
    """The corpus that a name or path stands for.

    Args:
        name: one of `names()`; a file, folder or glob pattern of `.txt`, `.md`, `.jsonl` or `.parquet` files (a folder
            stands for all `.txt` and `.md` files below it); or `hf://datasets/owner/name` (with `:configuration`).
        field: which field of a JSON line, or column of a table, holds the text.
        documents: what one document of a text file is: the "file", a "line", or what stands between "blank_line"s.
        split: of a Hugging Face dataset.
        data_format: "txt", "jsonl" or "parquet" for files whose suffix does not tell.

    Raises:
        DataError: nothing there, no text in it, or not readable.
        ConfigError: a format that is not known.

    Example:
        >>> len(open_corpus("wiki"))  # doctest: +SKIP
        10033
    """
    if name in _NAMED:
        return _NAMED[name]()
    if name.startswith(_HUB):
        return _from_hub(name, field, split)
    paths = _find(name)
    kind = data_format or paths[0].suffix.lstrip(".").lower()
    odd = [p for p in paths if not data_format and p.suffix.lstrip(".").lower() != kind and kind not in ("txt", "md")]
    if odd:
        raise ConfigError(f"the corpus {name!r} mixes {paths[0].name} and {odd[0].name}; expected files of one kind")
    if kind in ("jsonl", "ndjson"):
        get = _JsonLines(paths, field)
        return Corpus(name, len(get), get, fingerprint(paths, field))
    if kind == "parquet":
        return _from_parquet(name, paths, field)
    if kind in ("txt", "md", "text"):
        return _from_text(name, paths, documents)
    raise ConfigError(f"{paths[0]} is of no known kind; expected .txt, .md, .jsonl or .parquet, or name its format")


def names() -> tuple[str, ...]:
    """Corpora known by name."""
    return tuple(_NAMED)


def _find(name: str) -> list[pathlib.Path]:
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md") and p.is_file())
        wanted = "no .txt or .md file is below it"
    else:
        found = [path] if path.is_file() else sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
        wanted = "no such file"
    if not found:
        raise DataError(
            f"the corpus {name!r} cannot be found: {wanted}, and no corpus has that name{closest(name, names())}"
        )
    return found


def fingerprint(paths: Sequence[pathlib.Path], *facts: str) -> str:
    """Digest of the files' names, sizes, first and last MiB: enough to notice another file, quick on a large one."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with open(path, "rb") as f:
            digest.update(f.read(1 << 20))
            f.seek(max(0, size - (1 << 20)))
            digest.update(f.read())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- named
def _wiki(language: str = "en-us") -> Corpus:
    package = packages.WIKI_SUMMARIES
    data = json.loads(packages.package_file(package).read_text(encoding="utf-8"))
    texts = [entry["extract"] for entry in data.values()]
    return Corpus("wiki", len(texts), texts.__getitem__, package.sha256)


def _news() -> Corpus:
    package = packages.NEWS_ARTICLES
    with zipfile.ZipFile(packages.package_file(package)) as archive:
        text = archive.read("NewsArticles.csv").decode("utf-8")
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        texts = [row["text"] for row in csv.DictReader(io.StringIO(text))]
    finally:
        csv.field_size_limit(limit)
    return Corpus("news", len(texts), texts.__getitem__, package.sha256)


_NAMED: dict[str, Callable[[], Corpus]] = {"wiki": _wiki, "news": _news}


# ---------------------------------------------------------------------------------------------------------- files
def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not text in UTF-8 (byte {e.start}); convert it first") from e
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from e


def _from_text(name: str, paths: Sequence[pathlib.Path], documents: DocumentRule) -> Corpus:
    if documents == "file":
        paths = [p for p in paths if p.stat().st_size]
        return Corpus(name, len(paths), lambda i: _read_text(paths[i]), fingerprint(paths, documents))
    if documents not in ("line", "blank_line"):
        raise ConfigError(f"documents = {documents!r} is not known; expected 'file', 'line' or 'blank_line'")
    border = r"\n" if documents == "line" else r"\n\s*\n"
    texts = [t for p in paths for t in re.split(border, _read_text(p)) if t.strip()]
    return Corpus(name, len(texts), texts.__getitem__, fingerprint(paths, documents))


class _JsonLines:
    """Documents of JSON-lines files: where each line begins is noted once, lines are read when asked for."""

    def __init__(self, paths: Sequence[pathlib.Path], field: str):
        self._paths, self._field = paths, field
        self._places = [(i, at) for i, path in enumerate(paths) for at in self._lines(path)]
        if self._places:
            self(0)  # a wrong field is noticed now

    @staticmethod
    def _lines(path: pathlib.Path) -> Iterator[int]:
        at = 0
        with open(path, "rb") as f:
            for line in f:
                if line.strip():
                    yield at
                at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, index: int) -> str:
        file, at = self._places[index]
        with open(self._paths[file], "rb") as f:
            f.seek(at)
            line = f.readline()
        where = f"{self._paths[file]}, document {index}"
        try:
            data = json.loads(line)
        except ValueError as e:
            raise DataError(f"{where} is not JSON ({e}); expected one object per line") from e
        text = data.get(self._field) if isinstance(data, dict) else None
        if not isinstance(text, str):
            keys = data if isinstance(data, dict) else ()
            raise DataError(
                f"{where} has no text under {self._field!r}{closest(self._field, keys)}; name its text field"
            )
        return text


def _from_parquet(name: str, paths: Sequence[pathlib.Path], field: str) -> Corpus:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise ConfigError("parquet files need the package pyarrow; pip install 'jaxsae[datasets]'") from e
    try:
        files = [parquet.ParquetFile(p) for p in paths]
    except (arrow.ArrowException, OSError) as e:
        raise DataError(f"{name!r} is not a readable parquet file: {e}") from e
    columns = files[0].schema_arrow.names
    if any(field not in f.schema_arrow.names for f in files):
        raise DataError(f"{paths[0]} has no column {field!r}{closest(field, columns)}; name its text field")
    groups = [(f, g, f.metadata.row_group(g).num_rows) for f in files for g in range(f.metadata.num_row_groups)]
    places = [(g, row) for g, (_, _, rows) in enumerate(groups) for row in range(rows)]

    @functools.lru_cache(maxsize=8)
    def group(number: int) -> Any:
        file, g, _ = groups[number]
        return file.read_row_group(g, columns=[field]).column(field)

    def get(index: int) -> str:
        number, row = places[index]
        return group(number)[row].as_py() or ""

    return Corpus(name, len(places), get, fingerprint(paths, field))


def _from_hub(name: str, field: str, split: str) -> Corpus:
    try:
        import datasets
    except ImportError as e:
        raise ConfigError("Hugging Face datasets need the package datasets; pip install 'jaxsae[datasets]'") from e
    path, _, configuration = name.removeprefix(_HUB).partition(":")
    try:
        data = datasets.load_dataset(path, configuration or None, split=split)
    except Exception as e:  # many kinds: network, unknown name, script refused
        reason = " ".join(str(e).split())[:300]
        raise DataError(f"the dataset {path!r} cannot be had: {reason}; check the name and the network") from e
    if field not in data.column_names:
        raise DataError(f"the dataset {path!r} has no column {field!r}{closest(field, data.column_names)}")
    fingerprint = str(getattr(data, "_fingerprint", ""))
    return Corpus(name, len(data), lambda i: data[i][field] or "", fingerprint)


def as_corpus(corpus: "Corpus | Sequence[str] | str | os.PathLike", **options: Any) -> Corpus:
    """A corpus, whatever it was given as: a corpus, texts in memory, or a name for `open_corpus`."""
    if isinstance(corpus, Corpus):
        return corpus
    if isinstance(corpus, (str, os.PathLike)):
        return open_corpus(os.fspath(corpus), **options)
    return Corpus.of(corpus)
