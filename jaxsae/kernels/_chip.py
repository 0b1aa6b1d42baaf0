"""What the TPU kernels need to know about the chip, without importing Pallas before it is used."""

import jax

#: Shape of a vector register: 8 x 128 values of 32 bits.
LANES, SUBLANES = 128, 8
#: Share of a core's VMEM that the kernels plan with; the rest is the compiler's.
VMEM_SHARE = 0.85
#: Oldest jax whose Pallas has what the kernels use.
OLDEST_JAX = (0, 10)


def vmem_bytes_here() -> int:
    """VMEM of one core of the chip that the program is traced for, which need not be one of this process."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.get_tpu_info().vmem_capacity_bytes


def objection(dtype: str) -> str | None:
    """Why no kernel can serve this dtype or run under this jax, or None.

    Example:
        >>> objection("float16")
        'takes float32 and bfloat16, not float16'
    """
    if dtype not in ("float32", "bfloat16"):
        return f"takes float32 and bfloat16, not {dtype}"
    if jax.__version_info__ < OLDEST_JAX:
        return f"needs jax >= 0.10, this is {jax.__version__}"
    return None
