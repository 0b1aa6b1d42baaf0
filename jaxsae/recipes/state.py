"""The one pytree that is trained, donated, vmapped, sharded and saved."""

from typing import Any

import jax
from flax import struct

from jaxsae.typing import Params


@struct.dataclass
class State:
    """Everything a run carries from step to step.

    params: leaves of all slots, fixed ones included.   track: tracker states by name.   opt: optax state of the
    trained leaves.   hyper: every swept scalar.   key: the run's random key, never advanced (steps fold into it).
    step: [] int32, shared by all runs of a fleet.   average: running mean of the trained leaves, or empty.
    """

    params: Params
    track: dict[str, Any]
    opt: Any
    hyper: Params
    key: jax.Array
    step: jax.Array
    average: Params
