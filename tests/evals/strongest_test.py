"""The table of best entries equals a sort of everything, in any order and any grouping."""

import numpy as np
import pytest

from jaxsae.evals.strongest import Best, lottery

S, N, n = 7, 600, 5


@pytest.fixture
def stream():
    rng = np.random.default_rng(0)
    key = rng.integers(0, 40, N).astype(float)  # many ties
    return rng.integers(0, S - 1, N), key, key.astype(np.float32), np.arange(N) * 3


def fill(stream, groups):
    best = Best(S, n)
    for g in groups:
        best.add(*(a[g] for a in stream))
    return best


def test_keeps_what_a_full_sort_keeps(stream):
    latent, key, _, row = stream
    best = fill(stream, [np.arange(N)])
    for j in range(S):
        want = sorted(zip(-key[latent == j], row[latent == j], strict=True))[:n]
        assert best.row[j].tolist() == [r for _, r in want] + [-1] * (n - len(want))
        assert best.key[j][: len(want)].tolist() == [-k for k, _ in want]


def test_order_grouping_and_merging_change_nothing(stream):
    whole = fill(stream, [np.arange(N)])
    order = np.random.default_rng(1).permutation(N)
    parts = fill(stream, np.array_split(order, 9))
    left, right = fill(stream, [order[:200]]), fill(stream, [order[200:]])
    left.merge(right)
    for other in (parts, left):
        for name in ("key", "value", "row"):
            np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))


def test_lottery_is_uniform_and_a_function_of_its_arguments():
    row, latent = np.divmod(np.arange(200_000), 400)
    a, b = lottery(row, latent, 0), lottery(row, latent, 1)
    np.testing.assert_array_equal(a[::-1], lottery(row[::-1], latent[::-1], 0))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
    assert np.histogram(a, 10, (0, 1))[0] == pytest.approx(20_000, rel=0.05)
    assert a.reshape(500, 400).mean(0) == pytest.approx(0.5, abs=0.07)  # no latent or row is favoured
    assert a.reshape(500, 400).mean(1) == pytest.approx(0.5, abs=0.08)
