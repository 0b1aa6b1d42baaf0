"""One self-contained HTML page from plain data: no external request, nothing a token's text could break out of."""

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jaxsae.train.run_dir import plain

_PARTS = re.compile(r"@(title|style|script|data)@")


def render(data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        data: title, lead, foot and runs, as `build_report` makes them.

    Example:
        >>> page = render({"title": "a </title> b", "lead": "", "foot": "", "runs": []})
        >>> page.count("</title>"), "&lt;/title&gt;" in page
        (1, True)
    """
    parts = {
        "title": html.escape(str(data["title"])),
        "style": _file("report.css"),
        "script": _file("charts.js") + "\n" + _file("report.js"),
        "data": embedded(data),
    }
    return _PARTS.sub(lambda m: parts[m[1]], _file("template.html"))


def embedded(data: Any) -> str:
    """JSON that may stand inside a script element: no tag, comment or entity can begin in it."""
    text = json.dumps(plain(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _file(name: str) -> str:
    return resources.files("jaxsae.report").joinpath(name).read_text(encoding="utf-8")
