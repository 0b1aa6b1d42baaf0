"""Shapes that measurements are quoted at, by name, and what a step at them cannot do without."""

import dataclasses

from jaxsae.errors import ConfigError, closest


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows of a batch, widths and active latents of one training step."""

    batch_size: int
    d_in: int
    d_sae: int
    k: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ConfigError(f"bench: {name} must be at least 1, found {value}")
        if self.k > self.d_sae:
            raise ConfigError(f"bench: k must lie between 1 and d_sae = {self.d_sae}, found {self.k}")

    @property
    def matmul_flops(self) -> int:
        """Of the encoder product, the only dense one a step needs."""
        return 2 * self.batch_size * self.d_in * self.d_sae

    @property
    def optimizer_bytes(self) -> int:
        """Adam in f32 on both matrices: weight and two moments, read and written once."""
        return 2 * self.d_in * self.d_sae * 6 * 4

    @property
    def gathered_bytes(self) -> int:
        """Rows of length d_in touched by the active entries: decode, gradient of the codes, and the two gradients."""
        return 4 * self.batch_size * self.k * self.d_in * 4


SHAPES = {
    "tiny": Shape(256, 64, 1024, 8),
    "smol": Shape(1024, 576, 8192, 32),
    "mid": Shape(2048, 768, 24576, 32),
    "A": Shape(8192, 768, 24576, 32),
    "B": Shape(4096, 2304, 65536, 64),
    "C": Shape(4096, 4096, 131072, 64),
}


def shape_of(name: str, batch_size: int | None, d_in: int | None, d_sae: int | None, k: int | None) -> Shape:
    """A named shape with some sizes replaced.

    Raises:
        ConfigError: an unknown name, or sizes that cannot be.

    Example:
        >>> shape_of("tiny", None, None, 2048, None)
        Shape(batch_size=256, d_in=64, d_sae=2048, k=8)
    """
    if name not in SHAPES:
        raise ConfigError(f"bench: no shape {name!r}{closest(name, SHAPES)}; or give batch_size, d_in, d_sae and k")
    given = {"batch_size": batch_size, "d_in": d_in, "d_sae": d_sae, "k": k}
    return dataclasses.replace(SHAPES[name], **{n: v for n, v in given.items() if v is not None})
