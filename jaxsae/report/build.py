"""The report of a run or of any dictionary: a page for people and report.json for programs."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import jaxsae
from jaxsae.errors import ConfigError
from jaxsae.evals.evaluate import EvalConfig, evaluate
from jaxsae.evals.features import FeaturesConfig
from jaxsae.evals.reconstruction import Progress, silent
from jaxsae.report.collect import page_data, recipe_of, tokens_trained
from jaxsae.report.page import render
from jaxsae.report.subject import Subject, fingerprint, open_subject
from jaxsae.train.run_dir import make_folder_of, write_atomic, write_json

#: A subject, the path of a run, or (sae, host, cache).
SubjectLike = Subject | str | os.PathLike | tuple


def build_report(
    subject: SubjectLike,
    out: str | os.PathLike,
    compare: SubjectLike | None = None,
    *,
    title: str = "",
    config: FeaturesConfig = FeaturesConfig(),
    evaluation: EvalConfig | None = EvalConfig(),
    keys: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes `out` (one HTML file that needs no network) and, beside it, the same numbers as JSON.

    Args:
        subject: a run directory, a `Subject`, or a tuple (sae, host, cache) with None for a host to do without.
        out: the page, e.g. `runs/a/report.html`, or its URL; the JSON file has the same name with the ending .json.
        compare: a second one, drawn beside the first.
        title: of the page; default the names of what it is about.
        config: which latents are shown, and what of them.
        evaluation: how to evaluate a subject that has no evaluation of its own; None leaves its numbers out.
        keys: names that come first in the JSON file, null where there is no such number.
        extra: further entries for the JSON file.
        progress: called now and then as progress(stage, done, total).

    Returns:
        What the JSON file holds: the numbers of `evals.evaluate`, d_in, d_sae, k, tokens_harvested, tokens_trained,
        versions, and with a second subject the same under "compare".

    Raises:
        JaxsaeError: something is missing or does not belong together; nothing that existed is changed.

    Example:
        >>> build_report("runs/quickstart", "runs/quickstart/report.html")  # doctest: +SKIP
    """
    page = os.fspath(out)
    if not page.endswith(".html"):
        raise ConfigError(f"the page should be named something.html, found {str(out)!r}")
    make_folder_of(page)  # what cannot be is told before the work
    subjects = [_subject(s) for s in (subject, compare) if s is not None]
    numbers = [_numbers(s, evaluation, progress) for s in subjects]
    runs = page_data(subjects, numbers, config, progress)
    data = {"title": title or " and ".join(s.name for s in subjects), "lead": _lead(subjects), "runs": runs}
    data["foot"] = f"Made by jaxsae {jaxsae.__version__} with jax {jax.__version__}."
    text = render(data)
    entries = [_entry(s, n, r) for s, n, r in zip(subjects, numbers, runs, strict=True)]
    report = {
        **dict.fromkeys(keys),
        **entries[0],
        **({"compare": entries[1]} if len(entries) > 1 else {}),
        **(extra or {}),
    }
    report["html"] = page
    write_atomic(page, text)
    write_json(page.removesuffix(".html") + ".json", report)
    return report


def evaluated(subject: Subject, config: EvalConfig, progress: Progress = silent) -> dict[str, Any]:
    """The evaluation of a subject, with the fingerprint of the weights it is about."""
    out = evaluate(subject.sae, subject.cache, subject.host, site=subject.site, config=config, progress=progress)
    return {**out, "recipe": recipe_of(subject), "fingerprint": fingerprint(subject.sae)}


def _subject(what: SubjectLike) -> Subject:
    if isinstance(what, Subject):
        return what
    if isinstance(what, tuple):
        sae, host, cache = what
        return Subject(sae.meta.recipe or "dictionary", sae, cache, host)
    return open_subject(what)


def _numbers(subject: Subject, config: EvalConfig | None, progress: Progress) -> dict[str, Any]:
    """The evaluation the subject has, or a new one; a cache without held-out rows is evaluated on its training rows."""
    if subject.evaluation is not None or config is None:
        return dict(subject.evaluation or {})
    if not subject.cache.split(config.split).rows:
        config = dataclasses.replace(config, split="train")
    return evaluated(subject, config, progress)


def _lead(subjects: list[Subject]) -> str:
    first = subjects[0]
    host, sae = first.cache.manifest.host.get("name", "a model"), first.sae
    if len(subjects) > 1:
        return f"Two dictionaries side by side: A is {subjects[0].name}, B is {subjects[1].name}."
    tokens = tokens_trained(first)
    trained = f", trained on {tokens:,} tokens" if tokens else ""
    kind = " ".join(filter(None, [recipe_of(first), "dictionary"]))
    article = "An" if kind[0] in "aeiou" else "A"
    return f"{article} {kind} of {sae.d_sae:,} latents for {first.site} of {host}{trained}."


def _entry(subject: Subject, numbers: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    cache, sae = subject.cache, subject.sae
    return {
        "name": subject.name,
        **{k: v for k, v in numbers.items() if k != "seconds"},
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "site": subject.site,
        "host": cache.manifest.host.get("name", ""),
        "tokens_harvested": sum(cache.split(s).rows for s in ("train", "heldout")),
        "tokens_trained": tokens_trained(subject),
        "latents_shown": len(run["latents"]),
        "versions": {"jaxsae": jaxsae.__version__, "jax": jax.__version__},
    }
