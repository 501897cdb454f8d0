"""`python -m minimal_nn.data SET ...`: fetch data sets and verify them (fetch.py)."""

from minimal_nn.command import run
from minimal_nn.data.fetch import main

if __name__ == "__main__":
    run(main)
