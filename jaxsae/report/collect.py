"""From a dictionary in its surroundings to the plain data a report page is drawn from."""

import codecs
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsae.evals import metrics
from jaxsae.evals.contexts import Context
from jaxsae.evals.features import Feature, FeaturesConfig, features, similar_atoms
from jaxsae.evals.reconstruction import Progress, silent
from jaxsae.evals.scan import Scan
from jaxsae.report.subject import Subject
from jaxsae.train.logs import Record

_POINTS = 400
#: How a tokenizer's `token_strings` shows a byte that is no whole character.
_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")
_NOT_METRICS = ("kind", "step", "tokens", "time")


def page_data(
    subjects: Sequence[Subject], numbers: Sequence[dict[str, Any]], config: FeaturesConfig, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Everything about each subject, as the page's script reads it.

    Args:
        subjects: one, or two to compare.
        numbers: the evaluation of each.
        config: which latents are shown, and what of them.
        progress: called now and then.
    """
    atoms = [np.asarray(s.sae.W_dec, np.float32) for s in subjects]
    comparable = len(subjects) == 2 and atoms[0].shape[1] == atoms[1].shape[1]
    runs: list[dict[str, Any]] = []
    shown: list[list[int]] = []
    for i, (subject, evaluation) in enumerate(zip(subjects, numbers, strict=True)):
        partners = _nearest(atoms, 0, shown[0]) if i and comparable else []  # so that links from A to B lead somewhere
        include = [pairs[0][0] for pairs in partners if pairs]
        found, counts = features(
            subject.sae,
            subject.cache,
            subject.host,
            site=subject.site,
            include=include,
            config=config,
            progress=progress,
        )
        shown.append([f.latent for f in found])
        runs.append(_run(subject, evaluation, found, counts, config))
    for i in range(2 if comparable else 0):
        for latent, pairs in zip(runs[i]["latents"], _nearest(atoms, i, shown[i]), strict=True):
            latent["o"] = [[j, round(c, 3)] for j, c in pairs]
    return runs


def _nearest(atoms: list[np.ndarray], which: int, latents: list[int]) -> list[tuple[tuple[int, float], ...]]:
    """For some latents of one dictionary, the two nearest atoms of the other."""
    return similar_atoms(atoms[which], np.asarray(latents, np.int64), 2, atoms[1 - which])


def _run(
    subject: Subject, numbers: dict[str, Any], found: list[Feature], counts: Scan, config: FeaturesConfig
) -> dict[str, Any]:
    words = Words(subject)
    live = int(np.sum(counts.fired >= config.minimum))
    note = (
        f"{len(found):,} of the {live:,} latents that were on at least {config.minimum} times in "
        f"{counts.rows:,} {config.split} rows. Each shows its strongest contexts and some at quantiles of its "
        "activation; the marked token is the one that was ranked. Click a line to unfold it."
    )
    return {
        "name": subject.name,
        "shape": {"d_in": subject.sae.d_in, "d_sae": subject.sae.d_sae},
        "facts": facts(subject),
        "metrics": numbers,
        "curves": curves(subject.log),
        "density": metrics.density_histogram(counts.density),
        "latents": [_latent(f, words) for f in found],
        "vocab": words.texts,
        "note": note,
    }


class Words:
    """Token texts in the order of their first use: contexts hold places in this list."""

    def __init__(self, subject: Subject):
        self._tokenizer = subject.host.tokenizer if subject.host is not None else None
        self._place: dict[str, int] = {}
        self._by_id: dict[int, str] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._place)

    def text(self, text: str) -> int:
        """Place of a text."""
        return self._place.setdefault(text, len(self._place))

    def ids(self, ids: np.ndarray) -> list[int]:
        """Places of the texts of consecutive tokens; without a tokenizer they are shown by number."""
        new = [i for i in dict.fromkeys(ids.tolist()) if i not in self._by_id]
        texts = self._tokenizer.token_strings(new) if self._tokenizer else [f"⟨{i}⟩" for i in new]
        self._by_id |= dict(zip(new, texts, strict=True))
        return [self.text(t) for t in whole_characters([self._by_id[i] for i in ids.tolist()])]


def whole_characters(texts: list[str]) -> list[str]:
    r"""Puts characters together whose bytes are spread over tokens: the last of them shows it, the others nothing.

    Example:
        >>> whole_characters(["a", r"\xc3", r"\xa9", "b", r"\xe2"])
        ['a', '', 'é', 'b', '\\xe2']
    """
    out, start = list(texts), 0
    while start < len(texts):
        stop = start
        while stop < len(texts) and _BYTE.search(texts[stop]):
            stop += 1
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            whole = [decoder.decode(_bytes(t), i == stop - 1) for i, t in enumerate(texts[start:stop], start)]
            out[start:stop] = whole
        except UnicodeDecodeError:  # bytes that are no text, or a character cut off at the border
            pass
        start = stop + 1
    return out


def _bytes(text: str) -> bytes:
    pieces = _BYTE.split(text)  # text, two hexadecimal digits, text, ...
    return b"".join(bytes.fromhex(p) if i % 2 else p.encode("utf-8", "replace") for i, p in enumerate(pieces))


def _latent(feature: Feature, words: Words) -> dict[str, Any]:
    return {
        "i": feature.latent,
        "d": short(feature.density),
        "a": short(feature.mean),
        "m": short(feature.maximum),
        "h": list(feature.histogram),
        "g": [[name, [_context(c, feature.maximum, words) for c in group]] for name, group in feature.groups],
        "p": [[words.text(w), short(x, 3)] for w, x in feature.promoted],
        "s": [[words.text(w), short(x, 3)] for w, x in feature.suppressed],
        "n": [[j, round(c, 3)] for j, c in feature.similar],
    }


def _context(context: Context, strongest: float, words: Words) -> list:
    """[document, place of the peak, tokens, [place, activation in thousandths of the strongest, ...]]."""
    share = np.rint(1000 * context.values / (abs(strongest) or 1.0)).astype(int)
    on = np.flatnonzero(share)
    pairs = np.stack([on, share[on]], axis=1).reshape(-1).tolist()
    return [context.doc, context.peak, words.ids(context.tokens), pairs]


def curves(log: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Kind -> {"x": tokens, "y": {metric: values}} of a training log, at most a few hundred points each."""
    out: dict[str, dict[str, Any]] = {}
    for kind in ("train", "heldout"):
        records = [r for r in log if r.get("kind") == kind and "tokens" in r]
        every = math.ceil(len(records) / _POINTS)
        records = [r for i, r in enumerate(records) if i % every == 0 or i == len(records) - 1] if records else []
        names = dict.fromkeys(k for r in records for k, v in r.items() if k not in _NOT_METRICS and _is_number(v))
        if names:
            values = {n: [short(r[n], 5) if _is_number(r.get(n)) else None for r in records] for n in names}
            out[kind] = {"x": [r["tokens"] for r in records], "y": values}
    return out


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def facts(subject: Subject) -> list[tuple[str, str]]:
    """What a reader wants to know before the numbers: (label, text)."""
    sae, cache = subject.sae, subject.cache
    selection = f"{sae.k} largest per row" if sae.k else "threshold"
    rows = " + ".join(
        f"{cache.split(s).rows:,} {label}" for s, label in (("train", "training"), ("heldout", "held-out"))
    )
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in cache.dropped.items() if n)
    found = [
        ("recipe", recipe_of(subject)),
        ("width", f"{sae.d_in:,} to {sae.d_sae:,} latents"),
        ("selection", selection),
        ("host", cache.manifest.host.get("name", "unknown")),
        ("site", subject.site),
        ("activations", f"{rows} rows"),
        ("left out", dropped),
        ("corpus", str(cache.manifest.corpus.get("name", ""))),
        ("trained on", f"{tokens_trained(subject):,} tokens" if tokens_trained(subject) else ""),
        ("training took", _clock(subject.log[-1]["time"]) if subject.log and "time" in subject.log[-1] else ""),
    ]
    return [(name, str(text)) for name, text in found if text]


def recipe_of(subject: Subject) -> str:
    """Name of the method, from the dictionary or from the run's configuration."""
    tag = subject.config.get("recipe", {})
    return subject.sae.meta.recipe or str(tag.get("type", "") if isinstance(tag, dict) else "").removeprefix("recipe.")


def tokens_trained(subject: Subject) -> int | None:
    """Activations seen in training, if anybody wrote it down."""
    logged = [r["tokens"] for r in subject.log if r.get("kind") == "train" and "tokens" in r]
    noted = subject.sae.meta.get("tokens_trained")
    return int(noted) if noted is not None else logged[-1] if logged else None


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {s} s" if minutes else f"{s} s"


def short(x: float, digits: int = 4) -> float:
    """x to so many digits: what a page shows needs no more."""
    return float(f"{x:.{digits}g}")
