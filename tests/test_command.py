"""The command minimal-nn: its words, its ends, its colours; installed, see test_package.py."""

import os
import subprocess
import sys

import pytest

import minimal_nn
from minimal_nn import command

COMMANDS = command._COMMANDS
CODE = "from minimal_nn.command import script; script()"


def run(*arguments, **options):
    line = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(line, capture_output=True, text=True, **options)


def test_the_version_and_the_help(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minimal-nn {minimal_nn.__version__}\n"
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS) and command.main([]) == 2


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_a_word_runs_its_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith("usage: ")


def test_an_unknown_word_is_refused_with_the_nearest(capsys):
    assert command.main(["verfy"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minimal-nn: got 'verfy' (did you mean 'verify'?), expected one of ver")


def test_the_benchmarks_need_a_clone(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = f"import sys; sys.path.append({str(minimal_nn.__path__[0])!r} + '/..'); {CODE}"
    code = code.replace("import sys;", "import sys; sys.modules['benchmarks'] = None;")
    line = [sys.executable, "-c", code, "bench"]
    found = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "minimal-nn bench: run it in a clone of the repository\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    line = [sys.executable, "-c", CODE, "data", "--list"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1 and err == b""


def test_an_interruption_ends_it_in_a_word(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        command.run(main)
    assert end.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize(
    "no_color, term, painted", (("", "xterm", True), ("1", "xterm", False), ("", "dumb", False))
)
def test_colours_are_for_terminals(monkeypatch, no_color, term, painted):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    words = {"FAILS": "red", r"holds( \(estimated\))?": "green"}
    for line, code in (("a claim FAILS", 31), ("a claim  holds", 32)):
        assert command.painted(line, words) == line
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        head, word = line.rsplit(" ", 1)
        expected = f"{head} \033[{code}m{word}\033[0m" if painted else line
        assert command.painted(line, words) == expected
        assert command.painted("all claims hold", words) == "all claims hold"
        monkeypatch.undo()
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", term)


def test_no_word_is_near_what_is_far():
    assert command.suggestion("xyzzy", COMMANDS) == ""
