"""The same training on any mesh: same initial weights, same batches, one compilation."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxsae import parallel
from jaxsae.recipes import Programs, Recipe, State
from jaxsae.testing.conformance import assert_close, batches

#: After so many steps in f32 every leaf of the state, and every metric, agrees within BOUND of its largest entry.  Sums
#: are taken in another order on each mesh; nothing else differs.
STEPS, BOUND = 20, 2e-5
#: Leaves that a symmetry of the model leaves undetermined: their gradient is 0 but for rounding, and Adam makes of any
#: rounding a step of full length.
UNDETERMINED = {"b_k": "it shifts all scores of a query alike, which the softmax cancels"}

COMPILED: list[str] = []


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)


def device_mesh(shape: tuple[int, int]) -> Mesh:
    """A mesh of data x latent of the first devices there are."""
    return parallel.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])


def train_on(
    recipe: Recipe, mesh: Mesh | None, data: Sequence[Any], key: Any = None, zero: bool = False
) -> tuple[Programs, State, Any]:
    """The programs, the state and the metrics after these batches.

    Fails if a step after the first compiles anything, or moves anything between host and devices unasked.
    """
    programs = Programs(recipe, mesh, data[0], zero=zero)
    placed = data if mesh is None else [jax.device_put(batch, programs.rows) for batch in data]
    state = programs.init(jax.random.key(0) if key is None else key, placed[0])
    state, metrics = programs.step(state, placed[0])
    compiled = len(COMPILED)
    with jax.transfer_guard("disallow"):
        for batch in placed[1:]:
            state, metrics = programs.step(state, batch)
    assert len(COMPILED) == compiled, "a step after the first was compiled again"
    return programs, state, metrics


def determined(state: State) -> Any:
    """Parameters and trackers, without leaves that only rounding moves."""
    return {name: a for name, a in state.params.items() if name not in UNDETERMINED}, state.track


def check_meshes_agree(recipe: Recipe, key: Any, shapes: Sequence[tuple[int, int]] = ((2, 4),), seed: int = 0) -> None:
    """Training on these meshes, with the mesh in force as in `jaxsae.train`, equals training without one."""
    data = batches(STEPS, seed=seed)
    _, alone, metrics_alone = train_on(recipe, None, data, key)
    for shape in shapes:
        programs, state, metrics = train_on(recipe, device_mesh(shape), data, key)
        placed = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, programs.placed)
        assert all(jax.tree.leaves(placed)), f"{shape}: a leaf left its place"
        assert_close((determined(state), metrics), (determined(alone), metrics_alone), BOUND)
