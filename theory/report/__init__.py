"""What `python -m theory` prints and writes: outline and table; the page, the page to play with."""
