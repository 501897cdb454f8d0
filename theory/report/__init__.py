"""What `python -m theory` prints and writes.

    outline     a line for each claim, in plain words
    table       a line for each subject; a claim in full
    reach       how small a fault a claim catches
    letters     mathematics in letters that a terminal shows
    glossary    what the symbols mean
    page        the report: every claim with its verdicts
    pictures    a claim's law and the runs on it
    play        the page to play with
    processes   claims measured on several processes
    seeds       claims over many seeds
    faults      which claims catch which planted fault
    ask         what practitioners ask, answered by claims and laws

Pages are drawn by `drawing`, without a library.
"""
