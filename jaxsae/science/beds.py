"""The testbeds at the size of these studies: small enough that a run takes seconds on one CPU core."""

from jaxsae.data import Cooccurrence, Hierarchy, Superposition, VariableCount

#: Width of the rows, and of the dictionaries.
D, S = 32, 128

S1 = Superposition(d_in=D, features=64, active=4, decay=0.5)
S2 = Hierarchy(d_in=D, parents=6, children=4, exclusive=1.0, p_child=(0.15, 0.25))
S3 = Cooccurrence(d_in=D, pairs=24, p_both=0.06, p_alone=0.02)
S4 = VariableCount(d_in=D, features=64, least=1, most=12)
S5 = Superposition(d_in=D, features=40, active=4, decay=0.0, signed=True)
S6 = Superposition(d_in=D, features=48, active=3, decay=0.5, rank=16)
