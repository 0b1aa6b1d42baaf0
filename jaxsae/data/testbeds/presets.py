"""The testbeds by the short names that recipes and studies use."""

from typing import Any

from jaxsae.data.testbeds.cooccurrence import Cooccurrence
from jaxsae.data.testbeds.dark_matter import DarkMatter
from jaxsae.data.testbeds.hierarchy import Hierarchy
from jaxsae.data.testbeds.mixture import Mixture
from jaxsae.data.testbeds.superposition import Superposition
from jaxsae.data.testbeds.variable import VariableCount
from jaxsae.errors import ConfigError, closest

#: S1 superposition, S2 hierarchy, S3 co-occurrence, S4 rows of unequal complexity, S5 bidirectional features, S6 data
#: in a subspace, S7 noise with few features (train with 2 to 4 times as many latents), S8 dark matter,
#: S11 conditionally orthogonal children, S13 mixtures of labelled images.
PRESETS: dict[str, Any] = {
    "S1": Superposition(),
    "S2": Hierarchy(),
    "S3": Cooccurrence(),
    "S4": VariableCount(),
    "S5": Superposition(features=48, active=6, decay=0.0, signed=True),
    "S6": Superposition(rank=32),
    "S7": Superposition(features=96, active=5, decay=0.5, noise=0.1),
    "S8": DarkMatter(),
    "S11": Hierarchy(exclusive=1.0, sibling_cosine=0.5),
    "S13": Mixture(),
}


def testbed(name: str) -> Any:
    """A testbed at its usual size.

    Raises:
        ConfigError: no such testbed.

    Example:
        >>> testbed("S1").features
        256
    """
    if name not in PRESETS:
        raise ConfigError(f"no testbed is called {name!r}{closest(name, PRESETS)}")
    return PRESETS[name]


testbed.__test__ = False  # type: ignore[attr-defined]
