"""Tables out of records: what `python -m benchmarks` prints, and the guide's table in markdown."""

import json
from pathlib import Path

from minimal_nn.files import whole_file

RECORDS = Path(__file__).parent / "records"


def newest_records(prefix):
    """Return the newest record of a kind ("cpu", "gpu") from each machine, newest first."""
    newest = {}
    for path in sorted(RECORDS.glob(f"{prefix}-*.json"), reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        newest.setdefault(record["machine"], record)
    return list(newest.values())


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
    lines.append(
        f"  {comparison['ratio']:.2f} times the best peer ({NAMES[comparison['best_peer']]}; "
        f"quartiles {low:.2f} to {high:.2f}){_verdict(comparison)}"
    )
    roof = comparison["roofline"]
    lines.append(
        f"  {roof['flops'] / 1e6:.3g} MFLOP, {roof['bytes'] / 1e6:.3g} MB; "
        f"{roof['peak_gflops']:.0f} GFLOP/s, {roof['bandwidth_gb']:.1f} GB/s; roof "
        f"{seconds(roof['seconds'])} by {roof['bound']}, reached to {roof['fraction']:.2f}"
    )
    return "\n".join(lines)


def printed_memory(found):
    """Return the line of batch norm's share of the bandwidth."""
    low, high = found["ratio_quartiles"]
    disturbed = f", disturbed: {found['disturbed']}" if found["disturbed"] else ""
    return (
        f"threads: {found['threads']}: bandwidth {found['bandwidth_gb']:.1f} GB/s, batch norm at "
        f"{found['ratio']:.2f} of it ({low:.2f} to {high:.2f}){disturbed}"
    )


def _verdict(comparison):
    if comparison["disturbed"]:
        return f", no verdict: {comparison['disturbed']}"
    if comparison["verdict"] is None:
        return ""
    return f", aim {comparison['aim']}: {comparison['verdict']}"


COLUMNS = (
    "a training step of",
    "processor",
    "threads",
    "ours",
    "best peer",
    "",
    "faster (quartiles)",
    "of the roof",
)


def markdown(*records):
    """Return the guide's table of cpu records, a row for each comparison and processor.

    A row that was disturbed is told as such and not in bold; a record from before rows had a
    roofline has none to show.
    """
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for record in records:
        for comparison in record["comparisons"]:
            lines.append(_row(comparison, record.get("processor", record["machine"])))
    lines.append("")
    lines += [_origin(record) for record in records]
    return "\n".join(lines)


def _row(comparison, processor):
    mine = comparison["contestants"]["ours"]["seconds"]
    best = comparison["best_peer"]
    theirs = comparison["contestants"][best]["seconds"]
    low, high = comparison["ratio_quartiles"]
    faster = f"**{comparison['ratio']:.2f}** ({low:.2f} to {high:.2f})"
    if comparison.get("disturbed"):
        faster = f"disturbed: {low:.2f} to {high:.2f}"
    roof = f"{comparison['roofline']['fraction']:.2f}" if "roofline" in comparison else ""
    return (
        f"| {comparison['title']} | {processor} | {comparison['threads']} | {seconds(mine)} | "
        f"{NAMES.get(best, best)} | {seconds(theirs)} | {faster} | {roof} |"
    )


def _origin(record):
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{record['machine']}, {record['cores']} cores; {versions}; {record['date']}; medians of "
        f"{record['rounds']} interleaved rounds, batch 128, float32."
    )
