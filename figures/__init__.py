"""The paper's experiments as figures: `python -m figures`.

fig_*.py        a figure each: its configurations, what it computes from their results, its plot
presets.py      which data, network, grids and seeds
rules.py        by which measurements are judged: margins, exclusions, verdicts
runs/           what a run is: training, one small step, residuals of identities
grid/           runs them on any executor, and keeps what was computed
cells.py        what is said of an optimizer's runs at one eta and lambda
statements.py   numbers with intervals and verdicts;  style.py, drawing.py  one look, three formats
"""

import minimal_nn  # noqa: F401  it finds modules of this package under their old names
