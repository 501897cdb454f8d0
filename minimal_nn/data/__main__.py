"""`python -m minimal_nn.data SET ...`: fetch data sets and verify them (fetch.py)."""

import sys

from minimal_nn.data.fetch import main

if __name__ == "__main__":
    sys.exit(main())
