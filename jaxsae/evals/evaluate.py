"""The standard evaluation of a dictionary: reconstruction on held-out rows, and what the host loses by it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsae import parallel
from jaxsae.config import register
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals import metrics
from jaxsae.evals.loss_recovered import Windows, loss_recovered
from jaxsae.evals.reconstruction import Progress, reconstruction, silent, split_batches
from jaxsae.hosts import Host
from jaxsae.sae import SAE


@register("eval")
@dataclass(frozen=True)
class EvalConfig:
    """How a dictionary is evaluated.

    Attributes:
        split: rows and text of which split; "heldout" documents are never trained on.
        rows: rows for the reconstruction metrics; None for all.
        batch_rows: rows per device call.
        ce_tokens: tokens for the cross-entropies, 0 for none; whole windows, so slightly more.
        ce_batch_windows: windows per device call.
        replace_from: first position of a window that is replaced.
        bootstrap: resamples of the documents behind the standard errors.
        seed: of the resampling.
    """

    split: str = "heldout"
    rows: int | None = None
    batch_rows: int = 1024
    ce_tokens: int = 8192
    ce_batch_windows: int = 4
    replace_from: int = 1
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.batch_rows, self.ce_batch_windows) < 1
            or min(self.ce_tokens, self.replace_from, self.bootstrap) < 0
        ):
            raise ConfigError("an evaluation needs batch sizes of at least 1 and no negative numbers; check its config")


def evaluate(
    sae: SAE,
    cache: Any,
    host: Host | None = None,
    *,
    site: str | None = None,
    config: EvalConfig = EvalConfig(),
    progress: Progress = silent,
) -> dict[str, Any]:
    """All numbers about a dictionary on one site of a cache.

    In a run of several processes all of them have to call it: each works through its share of the batches, and all get
    the same numbers.

    Args:
        sae: any exported or loaded dictionary.
        cache: the activation cache; its held-out split is used, its training split gives the mean for the ablation.
        host: the model the cache comes from; None leaves the cross-entropies out.
        site: name of the site; None takes the dictionary's own, or the cache's only one.
        config: how much is measured.
        progress: called now and then.

    Returns:
        Plain data, ready for JSON: the metrics of `metrics.finish`, those of `loss_recovered`, `density_histogram`,
        and what was evaluated (d_in, d_sae, k, form, site, host, split, seconds).

    Raises:
        DataError: a cache of another model, an empty split, rows that are not finite.
        ConfigError: widths that do not agree.
    """
    began, site = time.perf_counter(), site_of(sae, cache, site)
    if host is not None:
        check_host(cache, host)
    split = cache.split(config.split)
    if sae.d_in != split.d(site):
        raise ConfigError(
            f"the dictionary reads width {sae.d_in}, but {site!r} has width {split.d(site)} in this cache"
        )
    rows = split.rows if config.rows is None else min(split.rows, config.rows)
    share = (parallel.index(), parallel.count())
    batches = split_batches(split, site, config.batch_rows, rows, share)
    seen = reconstruction(
        sae, batches, batch_rows=config.batch_rows, total=rows // share[1], progress=progress, together=True
    )
    out: dict[str, Any] = {**seen.numbers, "rows": int(seen.numbers["rows"])}
    if host is not None and config.ce_tokens:
        out |= loss_recovered(
            sae,
            host,
            site,
            windows_of(split, config.ce_tokens, config.replace_from),
            cache.stats(site).mean,
            replace_from=config.replace_from,
            batch_windows=config.ce_batch_windows,
            bootstrap=config.bootstrap,
            seed=config.seed,
            progress=progress,
            share=share,
        )
    out["density_histogram"] = metrics.density_histogram(seen.density)
    facts = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "form": sae.form,
        "recipe": sae.meta.recipe,
        "site": site,
    }
    facts |= {"host": cache.manifest.host.get("name", ""), "cache": cache.path, "split": config.split}
    return {**out, **facts, "seconds": round(time.perf_counter() - began, 2)}


def site_of(sae: SAE, cache: Any, site: str | None = None) -> str:
    """The site to evaluate: the one named, else the dictionary's own if the cache has it, else the cache's only one."""
    if site is None and sae.meta.site in cache.sites:
        return sae.meta.site
    return cache.site(site)


def check_host(cache: Any, host: Host) -> None:
    """Raises DataError unless the cache was made with this host."""
    if cache.manifest.host and not host.matches(cache.manifest.host):
        made_by = cache.manifest.host.get("name", "another model")
        raise DataError(
            f"the cache {cache.path} holds activations of {made_by!r} with other weights than the host {host.name!r}; "
            "evaluate with the model that made it"
        )


def windows_of(split: Any, tokens: int, replace_from: int = 1) -> Windows:
    """Windows of a split as they were run, from the first on, until they give at least `tokens` predictions.

    Raises:
        DataError: the cache has no text, or the split no window of at least two predictions.
    """
    if not split.windows:
        raise DataError(f"the {split.name} split of {split.cache.path} holds no text; expected a cache made by harvest")
    parts, found, step = [], 0, 64
    for start in range(0, split.windows, step):
        stop = min(start + step, split.windows)
        ids, owner = (split.read_windows(start, stop, name) for name in ("tokens", "token_doc"))
        length = np.where((owner < 0).any(1), np.argmax(owner < 0, axis=1), owner.shape[1])
        gain = np.maximum(0, length - 1 - replace_from)
        keep = (gain > 0) & (found + np.cumsum(gain) - gain < tokens)
        parts.append(Windows(ids[keep], length[keep], owner[keep, 0]))
        found += int(gain[keep].sum())
        if found >= tokens:
            break
    if not found:
        raise DataError(
            f"no window of the {split.name} split has more than {replace_from + 1} tokens; harvest longer ones"
        )
    return Windows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
