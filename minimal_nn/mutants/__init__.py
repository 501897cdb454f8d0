"""Named faults of normalizations, losses and optimizers, to see whether a test would notice them.

>>> import numpy as np
>>> from minimal_nn import mutants
>>> fault = next(m for m in mutants.MUTANTS if m.name == "variance-term-missing")
>>> batchnorm = mutants.load(fault.module, fault.edits, fault.name)
>>> z = np.array([[0.0], [1.0], [3.0]])
>>> y, cache = batchnorm.forward(z, np.ones(1), np.zeros(1), 0.0)
>>> dz, _, _ = batchnorm.backward(y**2, cache)
>>> bool(abs(np.sum(dz * z)) < 1e-12)  # <z, dL/dz> is 0, but for the fault
False
"""

from minimal_nn.mutants.catalogue import MUTANTS
from minimal_nn.mutants.loading import Mutant, load, source_of
from minimal_nn.mutants.planting import planted

__all__ = ["MUTANTS", "Mutant", "load", "planted", "source_of"]
