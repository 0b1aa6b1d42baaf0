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
* **path**: *fused*, encoding and selection in one op, with a sparse backward pass; *dense* otherwise.
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
    "abs_topk": "features with two directions; metrics must look at each sign by itself",
    "k_sparse": "codes as features of a classifier; small tied coders",
    "multi_topk": "more latents at inference than trained for, up to the multiple",
    "hierarchical_topk": "one coder for every k up to K (`sae.at_k`)",
    "msae": "one coder at every sparsity up to dense, as for embeddings",
    "matryoshka": "hierarchies of features, less absorption; any prefix is a coder (`sae.at_prefix`)",
    "matryoshka_random": "as matryoshka, without choosing the prefixes, and latents sorted by importance",
    "ortsae": "atoms that must not merge or duplicate each other",
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
        elif slot == "selector" and (switches := _switches(ours, theirs)):
            found.append(f"{slot} {type(ours).__name__}({switches})")
    for slot in ("terms", "trackers", "transforms"):
        known = {tag_of(m) for m in getattr(plain, slot)}
        new = [type(m).__name__ for m in getattr(recipe, slot) if tag_of(m) not in known]
        found += [f"{slot} {', '.join(new)}"] if new else []
    return "; ".join(found) or "none"


def _switches(ours: Any, theirs: Any) -> str:
    """Yes-or-no options in which two members of one class differ, as ours has them."""
    mine = vars(ours).items() if ours is not None else ()
    return ", ".join(f"{n}={v}" for n, v in mine if isinstance(v, bool) and v != getattr(theirs, n))


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
    """Recipe name -> what its study showed, as `jaxsae science` wrote it; empty before it has run.

    A finding counts for the recipe of the side that the claim favours, or for the study's method where it names none.
    """
    if not path.exists():
        return {}
    found: dict[str, list[str]] = {}
    for study in json.loads(path.read_text())["studies"]:
        first = study["tried"][0]
        if not first["findings"]:
            found.setdefault(study["method"], []).append(f"{study['id']}: {first['verdict']} ({first['problem']})")
        for f in first["findings"]:
            side: Any = f["facts"].get(f["better"][0], {})
            name = side.get("recipe", study["method"]) if isinstance(side, dict) else study["method"]
            text = f"{study['id']}: {f['claim']}: {f['verdict']} ({f['effect']:.2g}, spread {f['spread']:.2g})"
            found.setdefault(name, []).append(text)
    return {name: "; ".join(texts).replace("|", "\\|") for name, texts in found.items()}


def page(science: pathlib.Path) -> str:
    """The whole page."""
    recipes, saw = published(), seen(science)
    columns = ("method", "what", "changes", "path", "inference", "use", "source", "what we saw")
    lines = [HEAD, "| " + " | ".join(columns) + " |", "| " + " --- |" * len(columns)]
    for name, recipe in sorted(recipes.items()):
        none = "no study of its own" if saw else "not yet measured"
        row = {**facts(name, recipe, recipes["topk"]), "what we saw": saw.get(name, none)}
        lines.append("| " + " | ".join(row[c] for c in columns) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    kept = target.read_text().partition("\n## ") if target.exists() else ("", "", "")
    target.write_text(page(target.with_name("science.json")) + kept[1] + kept[2])
