"""Addresses of things on the Hugging Face hub."""

import dataclasses
import re

from jaxsae.errors import FormatError

PREFIX = "hf://"


@dataclasses.dataclass(frozen=True)
class Address:
    """hf://owner/repo/path@revision, taken apart.  `path` "" is the root of the repository."""

    repo: str
    path: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Reads an address; the revision may stand at the end or, as elsewhere, behind the repository.

        Raises:
            FormatError: it is not one.

        Example:
            >>> Address.parse("hf://google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71@main").path
            'layer_20/width_16k/average_l0_71'
        """
        form = r"hf://(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<early>[^/@\s]+))?(/(?P<path>[^@]*))?(@(?P<late>[^@\s]+))?"
        found = re.fullmatch(form, url)
        path = found["path"].strip("/") if found and found["path"] else ""
        twice = found and found["early"] and found["late"]
        if not found or twice or {"", ".", ".."} & set(path.split("/") if path else ()):
            raise FormatError(f"expected an address such as hf://owner/repo/path or .../path@revision, found {url!r}")
        return cls(found["repo"], path, found["early"] or found["late"] or "main")

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"{PREFIX}{self.repo}{path}" + ("" if self.revision == "main" else f"@{self.revision}")
