"""The page in a run directory that tells another person what lies there and how to go on."""

import datetime
import platform
from typing import Any

import jax

import jaxsae

PAGE = """# A training run of jaxsae

{what}

| file | what it is |
| --- | --- |
| `config.yaml` | the configuration, complete; `jaxsae train --config config.yaml` goes on or exports again |
| `log.jsonl` | one JSON object per line: kind (train, heldout, event), step, tokens, seconds, metrics |
| `checkpoints/<step>/` | the whole state after that step, with a digest per array |
| `sae/` | the exported dictionary, at the end: `jaxsae.load("{path}/sae")` |
| `train.json` | a summary, at the end |
| `members/<nn>/` | of a sweep: log, dictionary and summary of each run |
| `profile/` | a profiler trace, where one was asked for: `tensorboard --logdir profile` |

Look at it with `jaxsae report {path}`. Another step as a dictionary: `jaxsae.train.export("{path}", step=N)`.

Last begun {when} with jaxsae {version}, jax {jax} and Python {python} on {devices}.
"""


def page(path: str, about: dict[str, Any]) -> str:
    """The text of `README.md`.

    Args:
        path: the run directory.
        about: what the loop knows of the run: {"recipe": ..., "source": ..., "run": ...} as plain data.
    """
    devices = jax.devices()
    recipe, source = about["recipe"], about["source"]
    alone = recipe.get("recipe", recipe)  # of a fleet: the recipe of its members
    many = f", {len(recipe['members'])} runs as one program" if "members" in recipe else ""
    site = f" at {source['site']}" if "site" in source else ""
    return PAGE.format(
        what=f"Method `{alone['name']}`{many}, rows of width {source['d_in']}{site}, {source['batch_size']} per step.",
        path=path,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=jaxsae.__version__,
        jax=jax.__version__,
        python=platform.python_version(),
        devices=f"{len(devices)} x {devices[0].device_kind}",
    )
