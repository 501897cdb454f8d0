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
    return (
        f"threads: {found['threads']}: bandwidth {found['bandwidth_gb']:.1f} GB/s, batch norm at "
        f"{found['ratio']:.2f} of it ({low:.2f} to {high:.2f}){_verdict(found)}"
    )


FORMULAS = {"forward": "x W", "gradient": "x^T dz"}


def printed_products(found):
    """Return the lines of products beside MKL's."""
    lines = [f"products, threads: {found['threads']}"]
    for row in found["rows"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"  {_product(row):22} {row['gflops']:5.0f} GFLOP/s, {row['ratio']:.2f} times MKL's "
            f"({low:.2f} to {high:.2f}), {row['of_peak']:.2f} of the peak"
            f"{_verdict({**row, 'aim': '{} and {}'.format(*row['aims'])})}"
        )
    return "\n".join(lines)


def _product(row):
    return f"{FORMULAS[row['kind']]} {row['rows']} x {row['depth']} x {row['columns']}"


def _verdict(row):
    if row["disturbed"]:
        return f", no verdict: {row['disturbed']}"
    if row["verdict"] is None:
        return ""
    return f", aim {row['aim']}: {row['verdict']}"


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


PRODUCT_COLUMNS = (
    "a product",
    "processor",
    "threads",
    "ours",
    "times MKL's (quartiles)",
    "of the peak",
)
MEMORY_COLUMNS = ("beyond the cache", "processor", "threads", "bandwidth", "of it (quartiles)")


def markdown(*records):
    """Return the guide's tables of cpu records, a row for each comparison and processor.

    A row that was disturbed is told as such and not in bold; a record from before rows had a
    roofline, or products were compared, has none to show.
    """
    steps, products, memory = [], [], []
    for record in records:
        processor = record.get("processor", record["machine"])
        steps += [_row(each, processor) for each in record["comparisons"]]
        for found in record.get("products", ()):
            products += [_product_row(row, processor, found["threads"]) for row in found["rows"]]
        memory += [_memory_row(found, processor) for found in record.get("memory_bound", ())]
    tables = (COLUMNS, steps), (PRODUCT_COLUMNS, products), (MEMORY_COLUMNS, memory)
    lines = []
    for columns, rows in tables:
        if rows:
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows, ""]
    lines += [_origin(record) for record in records]
    return "\n".join(lines)


def _told(row):
    """Return a row's ratio, in bold where it may be believed, and its quartiles."""
    low, high = row["ratio_quartiles"]
    if row.get("disturbed"):
        return f"disturbed: {low:.2f} to {high:.2f}"
    return f"**{row['ratio']:.2f}** ({low:.2f} to {high:.2f})"


def _product_row(row, processor, threads):
    share = f"{row['of_peak']:.2f}"
    return (
        f"| {_product(row)} | {processor} | {threads} | {row['gflops']:.0f} GFLOP/s | "
        f"{_told(row)} | {share} |"
    )


def _memory_row(found, processor):
    return (
        f"| batch norm | {processor} | {found['threads']} | {found['bandwidth_gb']:.1f} GB/s | "
        f"{_told(found)} |"
    )


def _row(comparison, processor):
    mine = comparison["contestants"]["ours"]["seconds"]
    best = comparison["best_peer"]
    theirs = comparison["contestants"][best]["seconds"]
    roof = f"{comparison['roofline']['fraction']:.2f}" if "roofline" in comparison else ""
    return (
        f"| {comparison['title']} | {processor} | {comparison['threads']} | {seconds(mine)} | "
        f"{NAMES.get(best, best)} | {seconds(theirs)} | {_told(comparison)} | {roof} |"
    )


def _origin(record):
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{record['machine']}, {record['cores']} cores; {versions}; {record['date']}; medians of "
        f"{record['rounds']} interleaved rounds, batch 128, float32."
    )
