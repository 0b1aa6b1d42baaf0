"""A6: BatchTopK on rows of unequal complexity."""

from jaxsae.science.arms import batch_topk_arm, topk_arm
from jaxsae.science.beds import S4
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 6.0


@study(
    "A6",
    "batch_topk",
    "Bussmann et al. 2024, 2412.06410",
    "At equal mean L0 the FVU of BatchTopK is below that of TopK where rows differ in complexity.",
    "S4",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    ours = batch_topk_arm(lab, S4, L0, (4.5, 6.0, 8.0))
    theirs = topk_arm(lab, S4, L0, (4, 6, 8))
    first = lab.compare("FVU at mean L0 = 6, below TopK", ours, theirs, "fvu", L0)
    claim = "correlation of a row's L0 with its true count, above TopK"
    return [first, lab.compare(claim, ours, theirs, "count_correlation", L0, higher=True)]
