"""Testbeds: activations whose true features are known, as pure samplers.

    bed = testbed("S1")                         # or Superposition(d_in=32, features=64, active=4)
    truth = bed.init(key)                       # the true atoms and whatever else is fixed
    batch = bed.sample(truth, key, rows=512)    # {"x": [512, D], "codes": [512, F]}
    source = TestbedSource(bed, batch_size=512) # the same as batches for `jaxsae.train.fit`

`init` and `sample` are deterministic in the key, and can be jitted and vmapped.
"""

from jaxsae.data.testbeds.base import Testbed, Truth, capped, unit_directions
from jaxsae.data.testbeds.cooccurrence import Cooccurrence
from jaxsae.data.testbeds.dark_matter import DarkMatter
from jaxsae.data.testbeds.hierarchy import Hierarchy
from jaxsae.data.testbeds.mixture import Mixture
from jaxsae.data.testbeds.presets import PRESETS, testbed
from jaxsae.data.testbeds.source import TestbedSource
from jaxsae.data.testbeds.superposition import Superposition
from jaxsae.data.testbeds.variable import VariableCount

__all__ = [
    "PRESETS",
    "Cooccurrence",
    "DarkMatter",
    "Hierarchy",
    "Mixture",
    "Superposition",
    "Testbed",
    "TestbedSource",
    "Truth",
    "VariableCount",
    "capped",
    "testbed",
    "unit_directions",
]
