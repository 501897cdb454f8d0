r"""Exercises that answer at once: write a backward pass, and `check` says whether it is right.

What is wrong is named, where it equals one of the faults in `minimal_nn.mutants` to rounding, on
several draws and values of eps; else it is called wrong in another way, which it then is.

>>> from minimal_nn import lab
>>> def batchnorm_backward(dy, cache):
...     n = len(dy)
...     dbeta, dgamma = dy.sum(axis=0), (dy * cache.normalized).sum(axis=0)
...     return cache.gamma / cache.std * (dy - dbeta / n), dgamma, dbeta
>>> lab.check(batchnorm_backward, seconds=60)
batchnorm_backward: wrong: your dz equals the mutant variance-term-missing,
    to rounding, on all 6 draws; dgamma and dbeta are right

    check        an answer for one function, which runs in a process of its own with a time limit
    exercises    what is asked for, the draws it is judged on, and the right functions
    questions    the first and the last of them, which no module of the package answers
    diagnosis    how a fault is named
    submission   what is graded of a file: its imports, functions and literal constants
    apart        a function in a process of its own
    __main__     python -m minimal_nn.lab FILE ...: points for each exercise, also as JSON
"""

from minimal_nn.lab import exercises
from minimal_nn.lab.apart import check
from minimal_nn.lab.diagnosis import Answer
from minimal_nn.lab.exercises import EXERCISES

__all__ = ["EXERCISES", "Answer", "check", "exercises"]
