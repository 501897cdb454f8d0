"""What products may cost: their machine code, and their reads of shared memory, counted."""

import collections

import compiled
import numpy as np
import pytest

from minimal_nn.cuda.device import assembly, launch
from minimal_nn.cuda.products import choice, tensor
from minimal_nn.cuda.simulator import instructions

TILES = [
    (family, tile)
    for family in ("blocked", "float64", "reduced")
    for tile, kind in choice.TILES[family]
    if kind != "vectors"  # convolutions' own
    if family != "reduced" or kind != "trial"  # its steps are not written out
]
FORMS = {
    "blocked": (np.float32, None),
    "float64": (np.float64, None),
    "reduced": (np.float32, "tf32"),
}


def records_of(family, tile, size=32, schedule="lockstep"):
    """Return the launch of a product by a tile, of a matrix by a matrix."""
    kind, precision = FORMS[family]
    a, b = (np.zeros((size, size), kind) for _ in range(2))
    with launch.simulation(schedule), launch.recorded() as records:
        choice.product(a, b, precision=precision, tile=tile)
    return records


def counted(tile, itemsize):
    """Return what the loop of a tile holds: multiply-adds, reads of shared memory, copies there."""
    copies = (tile.BM + tile.BN) * tile.BK * itemsize // 16 // tile.threads
    if isinstance(tile, tensor.Tile):
        lines, columns, steps = tile.WM // 16, tile.WN // 8, tile.BK // 8
        return steps * lines * columns, steps * (4 * lines + 2 * columns), copies
    return tile.BK * tile.TM * tile.TN, tile.BK * (tile.TM + tile.TN) // 4, copies


@pytest.mark.parametrize(("family", "tile"), TILES, ids=str)
def test_the_main_loop_is_what_the_tile_says(family, tile):
    """Every multiply-add and every read, none more; vectors alone; one barrier; nothing spilled."""
    records = records_of(family, tile)
    (made,) = compiled.check(records).values()
    try:
        loop = assembly.main_loop(made)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    products, reads, copies = counted(tile, records[0].args[0].dtype.itemsize)
    kinds = collections.Counter()
    for name, count in loop.items():
        kinds[name.split(".")[0]] += count
    assert sum(kinds[kind] for kind in ("FFMA", "DMMA", "HMMA")) == products
    assert kinds["BAR"] == 1 and not kinds["LDL"] and not kinds["STL"]
    wide = [name for name in loop if name.startswith("LDG") and name.endswith(".128")]
    if family == "blocked":
        assert loop["LDS.128"] == kinds["LDS"] == reads
        assert kinds["LDG"] == sum(loop[name] for name in wide) == copies
    else:  # the compiler reads ahead for the first step
        assert reads <= kinds["LDS"] <= reads * 5 // 4
        assert kinds["LDGSTS"] == sum(loop[name] for name in wide) >= copies
    if tile == choice.TILES["blocked"][3][0]:
        assert products >= 0.85 * sum(loop.values())


def passes(addresses):
    """Return how often 32 banks of 4 bytes are read for 16 bytes to each lane of a warp.

    Eight lanes at a time; sixteen where every lane wants the words of a neighbour of its own.
    """
    lanes = np.arange(32)
    paired = any((addresses == addresses[lanes ^ bit]).all() for bit in (1, 2))
    most = 0
    for group in lanes.reshape(-1, 16 if paired else 8):
        words = {int(address) // 4 + k for address in addresses[group] for k in range(4)}
        most += max(collections.Counter(word % 32 for word in words).values())
    return most


def passes_of(tile, monkeypatch):
    """Return the mean passes of a warp's reads of either operand's tile."""
    seen = collections.defaultdict(list)

    def note(mask, array, index, n=1):
        if array.size in (2 * tile.BK * (tile.BM + 4), 2 * tile.BK * (tile.BN + 4)) and n == 4:
            for warp in index.reshape(-1, 32):
                seen[id(array)].append(passes(warp * 4))

    monkeypatch.setattr(instructions.lockstep, "note_read", note)
    records_of("blocked", tile, size=16, schedule="races")
    return sorted(float(np.mean(found)) for found in seen.values())


def test_interleaved_lanes_read_shared_memory_in_fewer_passes(monkeypatch):
    """Of the tile of A and of B: 32 lanes that all read 16 bytes take four passes at most."""
    lines, lanes = (choice.TILES["blocked"][i][0] for i in (3, 0))
    assert lanes == lines._replace(interleaved=True)
    assert passes_of(lines, monkeypatch) == [2, 4] and passes_of(lanes, monkeypatch) == [2, 2]
