"""Benchmarks: this project against PyTorch and JAX on the same work (`python -m benchmarks`)."""

import subprocess


def commit():
    """Return the commit of this checkout, or "unknown" where git does not tell."""
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
