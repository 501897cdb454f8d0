"""The exceptions of the network with names of their own; else ValueError and TypeError are raised.

Those of reading and fetching data stand in data/, that of BLAS threads in blas.py.
"""


class ZeroVarianceError(ValueError):
    """A variance is 0 at eps = 0, so that the normalized value 0/0 is undefined."""


class ZeroNormError(ValueError):
    """A weight vector is 0 at eps = 0, so that its direction is undefined."""


class NonFiniteError(ValueError):
    """A number that must be finite is NaN or infinite."""


class CudaUnavailableError(RuntimeError):
    """The CUDA wing cannot run here: no driver, no device, or a driver too old for the kernels."""


class CudaMemoryError(MemoryError):
    """The device has too little free memory for an array."""


class CheckpointError(ValueError):
    """A checkpoint file is damaged, belongs to another run, or would be overwritten."""


class ProgramError(RuntimeError):
    """A compiled program would read or write what is not its own: a fault of this software."""
