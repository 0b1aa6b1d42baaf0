"""Names of the places in a decoder where activations are read or replaced.

The names are TransformerLens's, so that a dictionary's `hook_name` means the same here and there:

    blocks.{i}.hook_resid_pre        residual stream entering block i                        d_model
    blocks.{i}.attn.hook_z           heads' outputs, concatenated, before W_O                n_heads * d_head
    blocks.{i}.hook_attn_out         what attention adds to the stream                       d_model
    blocks.{i}.hook_resid_mid        stream between attention and MLP                        d_model
    blocks.{i}.ln2.hook_normalized   what the MLP reads: normalised and times the norm gain  d_model
    blocks.{i}.hook_mlp_out          what the MLP adds to the stream                         d_model
    blocks.{i}.hook_resid_post       stream leaving block i; equals resid_pre of block i+1   d_model

`blocks.{i}.hook_mlp_in` is accepted for `blocks.{i}.ln2.hook_normalized`.  (In TransformerLens `ln2.hook_normalized`
is taken before the gain unless the gain is folded into the MLP, and `hook_mlp_in` before the norm.)
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxsae.errors import HostError, closest

#: The points of a block in the order in which they are computed, with the text that follows `blocks.{i}.`
POINTS: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
#: Points between which a block may be entered or left without touching its inside.
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
_ORDER = {point: i for i, point in enumerate(POINTS)}
_BY_SUFFIX = {suffix: point for point, suffix in POINTS.items()} | {"hook_mlp_in": "mlp_in"}


class Site(NamedTuple):
    """A point of one block."""

    layer: int
    point: str

    @property
    def name(self) -> str:
        """The full name, such as `blocks.9.hook_resid_post`."""
        return f"blocks.{self.layer}.{POINTS[self.point]}"

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts sites by the moment at which a forward pass reaches them."""
        return (self.layer, _ORDER[self.point])


def names(n_layers: int) -> tuple[str, ...]:
    """All site names of a model, in the order of the computation."""
    return tuple(Site(layer, point).name for layer in range(n_layers) for point in POINTS)


def parse(name: str, n_layers: int) -> Site:
    """The site called `name`.

    Raises:
        HostError: no such site; the message lists the nearest names, or the layers there are.

    Example:
        >>> parse("blocks.9.hook_resid_post", n_layers=30)
        Site(layer=9, point='resid_post')
    """
    found = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", str(name))
    point = _BY_SUFFIX.get(found[2]) if found else None
    if found is None or point is None:
        options = [f"blocks.{found[1] if found else 0}.{suffix}" for suffix in _BY_SUFFIX]
        raise HostError(f"no site is called {str(name)!r}{closest(str(name), options)}")
    if int(found[1]) >= n_layers:
        raise HostError(f"site {name!r} asks for block {int(found[1])}, but the model has blocks 0 to {n_layers - 1}")
    return Site(int(found[1]), point)
