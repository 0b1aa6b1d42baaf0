"""The headline ordering of every method's paper, in miniature, on data whose true features are known.

    jaxsae science                  # all methods; docs/science.md and docs/science.json
    jaxsae science --only A6        # one of them

fleet      many small runs of one recipe as one program
lab        arms of a comparison: a learning rate tuned alike for all, a frontier over sparsity, values at equal L0
measures   numbers about one trained dictionary
finding    effect, spread, verdict
studies    the registry, and the resumable runner
methods/   one small file per method
page       the Markdown page
"""

from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Arm, Lab
from jaxsae.science.studies import Study, registered, run, study

__all__ = ["Arm", "Finding", "Lab", "Study", "finding", "registered", "run", "study"]
