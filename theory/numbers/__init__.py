"""What a claim can be run in: floats, balls, symbols, numbers with an error bound, jets."""

from typing import Any, TypeAlias

# In annotations: a float, an array of floats or balls, a ball, a symbol.
Number: TypeAlias = Any
