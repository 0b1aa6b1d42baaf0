"""How many entries of a batch are kept."""

from fractions import Fraction

import jax.numpy as jnp
import pytest

from jaxsae.sae.rules import entries


@pytest.mark.parametrize("k", [1, 32, 4.5, 4.1, 0.3, 63.999])
@pytest.mark.parametrize("rows", [1, 10, 48, 4096])
def test_entries_are_k_times_the_rows_that_count(k, rows):
    mask = jnp.concatenate([jnp.ones(rows), jnp.zeros(7)])
    assert int(entries(k, mask)) == int(Fraction(str(k)) * rows)


@pytest.mark.parametrize("k", [129, 255])
def test_counts_above_two_to_the_24_are_exact(k):
    """In f32 the product of an odd k and so many rows is rounded to an even number, or to a multiple of 4."""
    rows = 2**17 + 1
    assert int(entries(jnp.float32(k), jnp.ones(rows))) == rows * k


def test_a_fraction_of_k_stays_right_at_large_counts():
    rows = 2**21 + 1
    found, exact = int(entries(jnp.float32(20.5), jnp.ones(rows))), 41 * rows // 2
    assert found == exact
