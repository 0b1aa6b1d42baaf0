"""Features that come only with another one: S2 (absorption) and S11 (conditionally orthogonal children)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, expect, magnitudes, unit_directions


@register("testbed.hierarchy")
@dataclass(frozen=True)
class Hierarchy:
    """Trees of two levels: a child is on only where its parent is (after Chanin et al. 2024 and Nabeshima 2024).

    P(parent) = p_parent.  Given the parent, P(child) runs evenly from `p_child[0]` to `p_child[1]` over siblings; in
    the first `round(exclusive * parents)` trees at most one child is on, in the others children are independent.
    Feature t is the parent of tree t; its children are features parents + t * children + (0, 1, ...).

    With `sibling_cosine` the children of a tree are orthogonal to their parent but correlated with each other, with
    about that cosine (the setting of Costa et al. 2025); without it all atoms are random.

    Attributes:
        d_in: D, width of a row.
        parents: number of trees.
        children: children of each.
        p_parent: probability of each parent.
        p_child: least and greatest probability of a child, given its parent.
        exclusive: share of trees whose children exclude each other.
        spread: of the magnitudes |N(1, spread^2)|.
        noise: standard deviation of normal noise on every coordinate.
        sibling_cosine: None for random atoms.

    Example:
        >>> bed = Hierarchy(d_in=16, parents=2, children=3)
        >>> bed.init(jax.random.key(0)).extra["parent"].tolist()
        [-1, -1, 0, 0, 0, 1, 1, 1]
    """

    d_in: int = 64
    parents: int = 8
    children: int = 4
    p_parent: float = 0.2
    p_child: tuple[float, float] = (0.15, 0.25)
    exclusive: float = 0.5
    spread: float = 0.25
    noise: float = 0.01
    sibling_cosine: float | None = None

    def __post_init__(self) -> None:
        low, high = self.p_child
        expect(min(self.d_in, self.parents, self.children) > 0, self, "positive sizes")
        expect(0 < self.p_parent < 1 and 0 < low <= high <= 1, self, "probabilities between 0 and 1, in order")
        expect(0 <= self.exclusive <= 1, self, "a share of exclusive trees between 0 and 1")
        total = self.children * (low + high) / 2
        expect(self.exclusive == 0 or total <= 1, self, f"exclusive children to share at most 1, not {total:g}")
        expect(self.sibling_cosine is None or 0 <= self.sibling_cosine < 1, self, "a sibling cosine from 0 to below 1")

    @property
    def features(self) -> int:
        return self.parents * (1 + self.children)

    @property
    def _p_child(self) -> np.ndarray:
        return np.linspace(*self.p_child, self.children).astype(np.float32)

    def init(self, key: jax.Array) -> Truth:
        """Atoms, probabilities, and `parent` [F] (-1 for parents themselves)."""
        k_parent, k_child, k_shared = jax.random.split(key, 3)
        top = unit_directions(k_parent, self.parents, self.d_in)
        leaves = unit_directions(k_child, self.parents * self.children, self.d_in)
        if self.sibling_cosine is not None:
            shared = unit_directions(k_shared, self.parents, self.d_in)
            leaves = self._correlated(top, shared, leaves, self.sibling_cosine)
        p = jnp.concatenate(
            [jnp.full(self.parents, self.p_parent), self.p_parent * jnp.tile(self._p_child, self.parents)]
        )
        parent = np.concatenate([np.full(self.parents, -1), np.repeat(np.arange(self.parents), self.children)])
        return Truth(jnp.concatenate([top, leaves]), p, {"parent": jnp.asarray(parent, jnp.int32)})

    def _correlated(self, top: jax.Array, shared: jax.Array, leaves: jax.Array, cosine: float) -> jax.Array:
        """Children sqrt(c) shared + sqrt(1 - c) own, both parts orthogonal to the parent and to each other."""
        own = leaves.reshape(self.parents, self.children, self.d_in)

        def orthogonal(a: jax.Array, b: jax.Array) -> jax.Array:
            a = a - jnp.sum(a * b, axis=-1, keepdims=True) * b
            return a / jnp.linalg.norm(a, axis=-1, keepdims=True)

        shared = orthogonal(shared, top)
        own = orthogonal(own, top[:, None, :])
        own = orthogonal(own, shared[:, None, :])  # shared is orthogonal to the parent, so this keeps the first
        return (cosine**0.5 * shared[:, None, :] + (1 - cosine) ** 0.5 * own).reshape(-1, self.d_in)

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`."""
        k_parent, k_child, k_size, k_noise = jax.random.split(key, 4)
        parent = jax.random.uniform(k_parent, (rows, self.parents)) < self.p_parent
        draw = jax.random.uniform(k_child, (rows, self.parents, self.children))
        p = self._p_child
        alone = draw < p[None, None]
        upper = np.cumsum(p)  # one draw picks a child, or none
        one = (draw[..., :1] >= (upper - p)[None, None]) & (draw[..., :1] < upper[None, None])
        trees = np.arange(self.parents) < round(self.exclusive * self.parents)
        child = jnp.where(trees[None, :, None], one, alone) & parent[..., None]
        on = jnp.concatenate([parent, child.reshape(rows, -1)], axis=1)
        codes = jnp.where(on, magnitudes(k_size, on.shape, self.spread), 0.0)
        noise = self.noise * jax.random.normal(k_noise, (rows, self.d_in))
        return {"x": codes @ truth.atoms + noise, "codes": codes}
