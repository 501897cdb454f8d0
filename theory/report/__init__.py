"""What `python -m theory` prints and writes.

    outline     a line for each claim, in plain words
    table       a line for each subject; a claim in full
    letters     mathematics in letters that a terminal shows
    glossary    what the symbols mean
    page        the report: every claim with its verdicts
    pictures    a claim's law and the runs on it, drawn by `drawing`
    play        the page to play with
    seeds       claims over many seeds
    faults      which claims catch which planted fault
"""
