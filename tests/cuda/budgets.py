"""What a product by a tile may cost: its machine code, and its reads of shared memory, counted."""

import collections

import numpy as np

from minimal_nn.cuda.device import assembly, launch
from minimal_nn.cuda.products import choice, tensor
from minimal_nn.cuda.simulator import instructions


def _found():
    try:
        return assembly.tool("nvdisasm")
    except FileNotFoundError:
        return None


DISASSEMBLER = _found()


def counted(tile, itemsize):
    """Return what the loop of a tile holds: multiply-adds, reads of shared memory, copies there."""
    copies = (tile.BM + tile.BN) * tile.BK * itemsize // 16 // tile.threads
    if isinstance(tile, tensor.Tile):
        lines, columns, steps = tile.WM // 16, tile.WN // 8, tile.BK // 8
        return steps * lines * columns, steps * (4 * lines + 2 * columns), copies
    return tile.BK * tile.TM * tile.TN, tile.BK * (tile.TM + tile.TN) // 4, copies


def check_loop(made, tile, itemsize):
    """Fail where the loop of a compiled product of matrices is not what its tile says.

    Every multiply-add and every read, none more; vectors alone; one barrier; nothing spilled.  It
    takes the `DISASSEMBLER`, which is in the extra `cuda`.
    """
    loop = assembly.main_loop(made)
    products, reads, copies = counted(tile, itemsize)
    kinds = collections.Counter()
    for name, count in loop.items():
        kinds[name.split(".")[0]] += count
    assert sum(kinds[kind] for kind in ("FFMA", "DMMA", "HMMA")) == products
    assert kinds["BAR"] == 1 and not kinds["LDL"] and not kinds["STL"]
    wide = sum(loop[n] for n in loop if n.startswith("LDG") and n.endswith(".128"))
    if isinstance(tile, tensor.Tile):  # the compiler reads ahead for the first step
        assert kinds["LDS"] <= reads * 5 // 4
        assert kinds["LDGSTS"] == wide >= copies
    else:
        assert loop["LDS.128"] == kinds["LDS"] == reads
        assert kinds["LDG"] == wide == copies
    if tile.BM == 128 and tile.BK == 16:
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
    """Return the mean passes of a warp's reads of the two operands' tiles, in shared memory."""
    seen = collections.defaultdict(list)

    def note(mask, array, index, n=1):
        if array.size in (2 * tile.BK * (tile.BM + 4), 2 * tile.BK * (tile.BN + 4)) and n == 4:
            for warp in index.reshape(-1, 32):
                seen[id(array)].append(passes(warp * 4))

    monkeypatch.setattr(instructions.lockstep, "note_read", note)
    a = np.zeros((16, 16), np.float32)
    with launch.simulation("races"):
        choice.product(a, a, tile=tile)
    return sorted(float(np.mean(found)) for found in seen.values())
