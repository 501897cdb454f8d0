"""Before the lab: is this laptop ready?  Run it a day before, with `python before_the_lab.py`.

It takes some seconds, changes nothing, and says what to do where something is missing.
"""

import sys
import time


def check_python():
    version = sys.version_info
    assert version >= (3, 10), (
        f"this is Python {version[0]}.{version[1]}; install Python 3.10 or later"
    )
    return f"Python {version[0]}.{version[1]}"


def check_packages():
    missing = []
    for name in ("numpy", "matplotlib", "minimal_nn", "theory"):
        try:
            __import__(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    assert not missing, (
        f"missing: {', '.join(missing)}; in the folder of the project run: {sys.executable} -m pip "
        "install ."
    )
    return "numpy, matplotlib, minimal_nn, theory"


def check_notebooks():
    from importlib.util import find_spec

    missing = [name for name in ("notebook", "jupytext") if find_spec(name) is None]
    assert not missing, (
        f"missing: {', '.join(missing)}; run: {sys.executable} -m pip install notebook jupytext "
        "(or open the .py files in an editor that knows cells, such as VS Code)"
    )
    return "notebooks open with: jupyter notebook"


def check_claim():
    from theory import CLAIMS
    from theory.subjects.networks import network_subject

    verdict = CLAIMS["gradient-orthogonality"].verify(network_subject("batch", "float64"))
    assert verdict, f"a claim failed: {verdict}; tell the teacher"
    return f"<w, grad L> / (|w| |grad L|) = {verdict.measurement.measured:.0e}"


def check_lab():
    from minimal_nn import lab

    def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
        return w, m, v

    started = time.perf_counter()
    answer = lab.check(adam, seconds=60)
    seconds = time.perf_counter() - started
    assert answer.fault == "another", (
        f"an exercise was answered wrongly: {answer}; tell the teacher"
    )
    assert seconds < 4, (
        f"an answer took {seconds:.1f} s; give check(..., seconds=60) in the notebooks"
    )
    return f"an exercise is answered in {seconds:.1f} s"


def main():
    ready = True
    for check in (check_python, check_packages, check_notebooks, check_claim, check_lab):
        try:
            print(f"ok       {check()}", flush=True)
        except Exception as error:
            ready = False
            print(f"MISSING  {error}", flush=True)
    print("ready for the lab" if ready else "not ready yet")
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
