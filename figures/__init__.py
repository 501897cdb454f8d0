"""The paper's experiments as figures: `python -m figures`.

Each figure is a file `fig_*.py` with `configurations`, `compute` and `plot`; `grid.py` runs the
configurations on any executor and `store.py` keeps what was computed.
"""

import minimal_nn  # noqa: F401  it finds modules of this package under their old names
