"""The table of all published methods, made from the recipes themselves.

`python -m jaxsae.testing.methods docs/methods.md` writes the page anew.  What a method changes, its path, its inference
forms and what is uncertain are read off the recipe and its docstring; what was seen comes from `docs/science.json`.
"""

import inspect
import json
import pathlib
import re
import sys
from typing import Any

from jaxsae.config import tag_of
from jaxsae.recipes import Recipe
from jaxsae.recipes.registry import configs
from jaxsae.testing.members import published

HEAD = """# All methods

Each is one function in `jaxsae.recipes`, one config in `configs/`, and a choice of slots.  The table is written by
`python -m jaxsae.testing.methods docs/methods.md`; docstrings say more, `docs/science.md` how each was tested, and
`docs/combinations.md` what goes with what.

* **changes**: members that differ from `topk`.
* **path**: *fused*, encoding and selection in one op that never writes the pre-activations; *dense* otherwise.
* **inference**: forms of the exported coder, the default first.
* **source**: what is not certain about it; empty where docstring and source leave nothing open.
"""

SLOTS = ("view", "norm", "encoder", "selector", "rule", "dictionary", "readout", "levels")

#: When to use what, where the docstring's "Expect" is not advice.
WHEN: dict[str, str] = {
    "topk": "the default: exact L0, fast, few dead latents",
    "batch_topk": "rows of unequal complexity, one threshold at inference",
    "group_max": "selection is the bottleneck, a little FVU may be lost",
    "mutual_choice": "as batch_topk, where rare latents matter; first phase of feature_choice",
    "feature_choice": "no latent may die; small dictionaries or a last phase, large batches",
    "adaptive_k": "a score of complexity per row is at hand",
    "top_afa": "no k should be chosen at all",
    "relu_l1": "comparison with older dictionaries",
    "tied_l1": "comparison with the first dictionaries of language models",
    "bricken": "comparison; a case for resampling",
    "gated": "no shrinkage, and a plain threshold form at inference",
    "gated_p_anneal": "as gated, a little sparser",
    "jumprelu": "long runs; a threshold per latent, L0 set by a coefficient",
    "jumprelu_target_l0": "a threshold per latent, L0 asked for by number",
    "jumprelu_anthropic": "a threshold per latent with few dead latents",
    "jumprelu_tanh_quad": "a threshold per latent where dense latents must go",
    "p_anneal": "an L1 coder nearer to L0, without thresholds to learn",
}


def facts(name: str, recipe: Recipe, plain: Recipe) -> dict[str, str]:
    """One row of the table."""
    doc = inspect.cleandoc(configs()[name].__doc__ or "")
    certainty = _paragraph(doc, "Certainty:") or _paragraph(doc, "Uncertain:")
    return {
        "method": f"`{name}`",
        "what": doc.split("\n")[0].rstrip("."),
        "changes": changes(recipe, plain),
        "path": "fused" if recipe.encoder.can_fuse(recipe.want) else "dense",
        "inference": ", ".join(recipe.encoder.forms),
        "use": WHEN.get(name) or _paragraph(doc, "Expect:"),
        "source": certainty,
    }


def changes(recipe: Recipe, plain: Recipe) -> str:
    """Members that differ from those of the plain recipe, by slot."""
    found = []
    for slot in SLOTS:
        ours, theirs = _slot(recipe, slot), _slot(plain, slot)
        if type(ours) is not type(theirs) and ours is not None:
            found.append(f"{slot} {type(ours).__name__}")
    for slot in ("terms", "trackers", "transforms"):
        known = {tag_of(m) for m in getattr(plain, slot)}
        new = [type(m).__name__ for m in getattr(recipe, slot) if tag_of(m) not in known]
        found += [f"{slot} {', '.join(new)}"] if new else []
    return "; ".join(found) or "none"


def _slot(recipe: Recipe, slot: str) -> Any:
    encode: Any = recipe.encoder
    selector = getattr(encode, "selector", None)
    inner = {
        "encoder": getattr(encode, "encoder", encode),
        "selector": selector,
        "rule": getattr(selector, "rule", None),
    }
    return inner[slot] if slot in inner else getattr(recipe, slot)


def _paragraph(doc: str, label: str) -> str:
    """The text after a label, up to the next blank line, on one line."""
    match = re.search(re.escape(label) + r"(.*?)(\n\s*\n|\Z)", doc, re.DOTALL)
    return " ".join(match.group(1).split()).replace("|", "\\|").rstrip(".") if match else ""


def seen(path: pathlib.Path) -> dict[str, str]:
    """Recipe name -> what the miniature experiments showed; empty before they have run."""
    if not path.exists():
        return {}
    stored: Any = json.loads(path.read_text())
    rows: list[dict] = (stored.get("rows") or stored.get("results") or []) if isinstance(stored, dict) else stored
    found: dict[str, list[str]] = {}
    for row in rows:
        for name in [row["recipe"]] if "recipe" in row else row.get("recipes", []):
            found.setdefault(name, []).append(f"{row.get('claim', '')}: {row.get('verdict', '')}".strip(": "))
    return {name: "; ".join(texts) for name, texts in found.items()}


def page(science: pathlib.Path) -> str:
    """The whole page."""
    recipes, saw = published(), seen(science)
    columns = ("method", "what", "changes", "path", "inference", "use", "source", "what we saw")
    lines = [HEAD, "| " + " | ".join(columns) + " |", "| " + " --- |" * len(columns)]
    for name, recipe in sorted(recipes.items()):
        row = {**facts(name, recipe, recipes["topk"]), "what we saw": saw.get(name, "not yet measured")}
        lines.append("| " + " | ".join(row[c] for c in columns) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    kept = target.read_text().partition("\n## ") if target.exists() else ("", "", "")
    target.write_text(page(target.with_name("science.json")) + kept[1] + kept[2])
