"""What `python -m theory` prints and writes: the table, the page, the page to play with."""
