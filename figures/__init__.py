"""The paper's experiments as figures: `python -m figures`.

fig_*.py        a figure each: its configurations, what it computes from their results, its plot
presets.py      which data, network, grids and seeds
runs/           what a run is: training, one small step, residuals of identities
grid/           runs them on any executor, and keeps what was computed
statements.py   numbers with intervals;  style.py, drawing.py  one look, three formats
"""

import minimal_nn  # noqa: F401  it finds modules of this package under their old names
