"""What `python -m theory` prints and writes: the table, the page."""
