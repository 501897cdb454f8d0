"""Tables out of records: what `python -m benchmarks` prints, and the README's table in markdown."""

import json
from pathlib import Path

from minimal_nn.files import whole_file

RECORDS = Path(__file__).parent / "records"


def latest_record(prefix):
    """Return the newest record of a kind ("cpu", "gpu"), or None."""
    paths = sorted(RECORDS.glob(f"{prefix}-*.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def write_record(prefix, record):
    """Write a record; return its path."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{prefix}-{record['date'].replace(':', '')}.json"
    with whole_file(path, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    return path


def seconds(value):
    """Return a time in the unit that suits it."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


NAMES = {
    "ours": "ours",
    "torch_eager": "PyTorch eager",
    "torch_channels_last": "PyTorch eager, channels_last",
    "torch_compiled": "PyTorch compiled",
    "torch_compiled_channels_last": "PyTorch compiled, channels_last",
    "torch_whole_step": "PyTorch, whole step compiled",
    "torch_process_pool": "PyTorch eager, a process per core",
    "jax_jit": "JAX jit",
    "jax_scan": "JAX jit and scan",
}


def printed(comparison):
    """Return the lines of one comparison: all contestants, times, ratios, memory."""
    lines = [f"{comparison['title']}, threads: {comparison['threads']}"]
    for name, entry in sorted(comparison["contestants"].items(), key=lambda x: x[1]["seconds"]):
        low, high = entry["quartiles"]
        lines.append(
            f"  {NAMES.get(name, name):36} {seconds(entry['seconds']):>9} a step"
            f"  ({seconds(low)} to {seconds(high)})  {entry['ratio']:6.2f}"
            f"  {entry['memory_mib']:6.0f} MiB  first step {entry['first_step_seconds']:5.1f} s"
        )
    low, high = comparison["ratio_quartiles"]
    aim = comparison["aim"]
    met = aim is not None and comparison["ratio"] >= aim
    verdict = "" if aim is None else f", aim {aim}: {'met' if met else 'MISSED'}"
    lines.append(
        f"  {comparison['ratio']:.2f} times the best peer ({NAMES[comparison['best_peer']]}; "
        f"quartiles {low:.2f} to {high:.2f}){verdict}"
    )
    return "\n".join(lines)


def markdown(record):
    """Return the README's table of a cpu record."""
    lines = [
        "| a training step of | threads | ours | best peer | | faster (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for comparison in record["comparisons"]:
        mine = comparison["contestants"]["ours"]["seconds"]
        best = comparison["best_peer"]
        theirs = comparison["contestants"][best]["seconds"]
        low, high = comparison["ratio_quartiles"]
        lines.append(
            f"| {comparison['title']} | {comparison['threads']} | {seconds(mine)} | "
            f"{NAMES.get(best, best)} | {seconds(theirs)} | "
            f"**{comparison['ratio']:.2f}** ({low:.2f} to {high:.2f}) |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines.append("")
    lines.append(
        f"{record['machine']}, {record['cores']} cores; {versions}; {record['date']}; medians of "
        f"{record['rounds']} interleaved rounds, batch 128, float32."
    )
    return "\n".join(lines)
