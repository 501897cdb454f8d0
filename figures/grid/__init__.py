"""Running many configurations, and a store of their results that survives interruption.

runner.py      what is run when, and what happens when a run, a worker or the grid dies
executors.py   where: worker processes, a Dask cluster;  progress.py  the bars
store.py       a file for each finished run;  archive.py  many runs in one file
records.py     how a run is written;  version.py  with which code
"""

from minimal_nn import moved

__getattr__ = moved.names_of(__name__)
