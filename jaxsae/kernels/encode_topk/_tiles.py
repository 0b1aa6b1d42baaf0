"""Static sizes of the TPU kernel under `encode_topk`: computed from the chip's memory and the chance of a miss."""

import dataclasses
import functools
import math

from jaxsae.kernels._chip import LANES, SUBLANES

#: Share of a core's VMEM that the kernel plans with.
SHARE = 0.9
#: Strips of products that the compiler keeps beside what is declared: 7.1 were counted on v5e, 4.1 on v6e, 3.3 on v5p.
COMPILER_STRIPS = 8
#: Bytes that the compiler keeps for each element of a tile of f32 rows: a product at the highest precision splits them
#: into bf16 parts, once for all strips, and spills what registers cannot hold.  16.0 were counted on v5e and v5p at
#: widths 768, 2304 and 4096, nothing on v6e, which the sizes of the memory do not tell from v5e.
SPLIT_BYTES = 16
#: Chance, for a row whose best are spread evenly over the columns, that its certificate fails.
MISS = 1e-5
#: Levels that a list may have.
MOST_LEVELS = 12
#: Columns over which the cost of one fold is spread where tiles are compared.
TYPICAL_COLUMNS = 32768
#: Bundles of a fold over those that its vector instructions would fill (2.2 on v6e, 3.6 on v5e).
FOLD_STALLS = 2.5


@dataclasses.dataclass(frozen=True)
class Depth:
    """How one list is kept: `levels` values in each of `groups` while columns stream, then folded.

    Attributes:
        groups: G, a multiple of 128; equal to, half or a smaller divisor of, or twice the columns of a tile.
        levels: m, of which the last bounds what was dropped.
        out_groups: after folding; a multiple of 128 that divides `groups`.
        out_levels: after folding, not counting the bound.
    """

    groups: int
    levels: int
    out_groups: int
    out_levels: int


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Static sizes of the kernel.

    Attributes:
        rows: R, of a row tile; a multiple of 16.
        columns: of one of the two buffers of pre-activations; a step of the grid works through two.
        strip: columns of one matmul inside the loop; divides `columns`.
        lists: one or two `Depth`: all latents, and the dead ones.
        vmem: bytes the kernel may use; None in the interpreter, which has no limit.
    """

    rows: int
    columns: int
    strip: int
    lists: tuple[Depth, ...]
    vmem: int | None


def miss_probability(k: int, groups: int, levels: int) -> float:
    """Bound on the chance that some group holds `levels` or more of a row's k best, spread evenly.

    Union bound over the groups of a binomial tail: G P(Bin(k, 1/G) >= m).

    Example:
        >>> round(miss_probability(64, 1024, 4), 5)
        0.00056
    """
    p = 1.0 / groups
    tail = sum(math.comb(k, i) * p**i * (1 - p) ** (k - i) for i in range(levels, min(k, levels + 40) + 1))
    return min(1.0, groups * tail)


def cost(depth: Depth, columns: int, labels: int = 1) -> float:
    """Bundles per vreg of scores that keeping a list costs, roughly: what tells one choice of m and G from another.

    A level takes a compare, a max, a min and two selects a label, on four vector slots.  The state of the groups is
    stored once per buffer, on one store slot, so that groups as many as columns are dear.  Against the compiler's
    final code for v5e and v6e (G 512 to 2048, m 4 to 6) the order of the choices holds.
    """
    per_level = 3 + 2 * labels
    vector = ((depth.levels - 1) * per_level + 1) / 4
    store = (depth.levels + labels * (depth.levels - 1)) / max(1, columns // depth.groups)
    walks = depth.groups // LANES * (depth.levels - 1)
    fold = FOLD_STALLS * walks * depth.out_levels * per_level / 4
    return max(vector, store) + fold / (TYPICAL_COLUMNS // LANES)


def depth_for(k: int, columns: int, widest: int, labels: int = 1) -> Depth:
    """The cheapest list that misses a row with probability below `MISS`, or else the one that misses least."""
    most = min(widest, 2 * columns)
    sizes = [LANES << n for n in range((most // LANES).bit_length())]
    choices = [
        Depth(groups, levels, *_folded(k, groups))
        for levels in range(2, MOST_LEVELS + 1)
        for groups in sizes
        if miss_probability(k, groups, levels) < MISS
    ]
    if not choices:
        return Depth(most, MOST_LEVELS, *_folded(k, most))
    return min(choices, key=lambda d: cost(d, columns, labels))


@functools.cache
def _folded(k: int, groups: int) -> tuple[int, int]:
    out = min(groups, 1 << (max(k, LANES) - 1).bit_length())
    levels = next((n for n in range(1, 40) if miss_probability(k, out, n + 1) < MISS / 10), 40)
    return out, levels


@functools.cache
def plan(rows: int, width: int, k: int, k_aux: int, scaled: bool, itemsize: int, vmem: int) -> Tiles | None:
    """The cheapest tiles of the most rows that fit the chip's memory and rarely miss, else those that miss least.

    None where none fit.  Rows come first because W is streamed once per row tile.

    Args:
        rows: B.
        width: D.
        k: of the first list.
        k_aux: of the second, 0 for none.
        scaled: whether scores are scaled, which doubles what is kept per level.
        itemsize: bytes of an element of W.
        vmem: bytes of a core of the chip.
    """
    budget, most, labels = int(vmem * SHARE), -(-rows // 16) * 16, 2 if scaled else 1
    fitting = [
        tiles
        for R in (512, 256, 128, 64, 32, 16)
        for columns in (1024, 512, 256)
        for widest in (2048, 1024, 512)
        if vmem_bytes(tiles := _tiles(min(R, most), columns, widest, k, k_aux, labels, budget), width, scaled, itemsize)
        <= budget
    ]
    wanted = [n for n in (k, k_aux) if n]

    def worst(tiles: Tiles) -> float:
        return max(miss_probability(n, d.groups, d.levels) for n, d in zip(wanted, tiles.lists, strict=True))

    good = [t for t in fitting if worst(t) < MISS]
    if not good:
        return min(fitting, key=worst, default=None)
    return min(good, key=lambda t: (-t.rows, sum(cost(d, t.columns, labels) for d in t.lists)))


def _tiles(rows: int, columns: int, widest: int, k: int, k_aux: int, labels: int, budget: int) -> Tiles:
    lists = tuple(depth_for(n, columns, widest, labels) for n in (k, k_aux) if n)
    return Tiles(rows, columns, 256, lists, budget)


def vmem_bytes(tiles: Tiles, width: int, scaled: bool, itemsize: int) -> int:
    """What the kernel keeps on the chip: two copies of each streamed block, one of its state, the compiler's own."""
    lanes = -(-width // LANES) * LANES
    inputs = 2 * itemsize * lanes * (tiles.rows + 2 * tiles.columns)
    vectors = 2 * 5 * 4 * SUBLANES * 2 * tiles.columns
    state = 4 * tiles.rows * (2 * tiles.columns + COMPILER_STRIPS * tiles.strip)
    if itemsize == 4:
        state += SPLIT_BYTES * tiles.rows * lanes
    labels = 2 if scaled else 1
    for d in tiles.lists:
        state += 4 * tiles.rows * d.groups * (d.levels + labels * (d.levels - 1))
        state += 2 * 4 * tiles.rows * d.out_groups * (1 + d.out_levels * (1 + labels))
    return inputs + vectors + state
