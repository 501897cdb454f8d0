"""What kernels may cost: their machine code, and how a warp's accesses lie in memory, counted."""

import collections
import re
from unittest import mock

import numpy as np

from benchmarks.gpu.static import main_loop
from minimal_nn.cuda.device import assembly, launch
from minimal_nn.cuda.products import choice, tensor
from minimal_nn.cuda.simulator import instructions, lockstep
from minimal_nn.cuda.simulator.device import Simulator


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


def check_loop(made, tile, itemsize, sums=False):
    """Fail where the loop of a compiled product of matrices is not what its tile says.

    Every multiply-add and every read, none more; vectors alone; one barrier; nothing spilled.
    sums: of a kernel that adds the entries of B's tile up as well, each once.  It takes the
    `DISASSEMBLER`, which is in the extra `cuda`.
    """
    loop = main_loop(made)
    products, reads, copies = counted(tile, itemsize)
    kinds = collections.Counter()
    for name, count in loop.items():
        kinds[name.split(".")[0]] += count
    assert sum(kinds[kind] for kind in ("FFMA", "DMMA", "HMMA")) == products
    assert kinds["BAR"] == 1 and not kinds["LDL"] and not kinds["STL"]
    added = tile.BN * tile.BK // tile.threads if sums else 0
    assert kinds["FADD"] + kinds["DADD"] == added
    wide = sum(loop[n] for n in loop if n.startswith("LDG") and n.endswith(".128"))
    if isinstance(tile, tensor.Tile):  # the compiler reads ahead for the first step
        assert kinds["LDS"] <= reads * 5 // 4 + added
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


SECTOR, BANKS, WORD = 32, 32, 4  # bytes that memory gives at once; of shared memory; of a bank


def traffic(record):
    """Return how well a recorded launch uses global and shared memory, 1 at best.

    The first: of the sectors that each warp's loads and stores touch, the share that the same
    number of bytes needs at least.  The second: the same of its passes over shared memory
    (asynchronous copies into it are not counted).  Arrays begin at a sector.
    """
    shared, least, taken = {}, [0, 0], [0, 0]
    allocate = lockstep._Shared.array

    def allocated(*given):
        array = allocate(*given)
        shared[id(array)] = array
        return array

    def noted(mask, array, index, n):
        places, who = lockstep._accesses(mask, array, index)
        inside = id(array) in shared
        for warp in np.unique(who // 32):
            lanes = places[who // 32 == warp] * array.itemsize
            size = n * array.itemsize
            unit = WORD * BANKS if inside else SECTOR
            words = np.unique(lanes[:, None] + np.arange(0, size, WORD))
            fewest = -(-len(words) * WORD // unit)
            if inside:
                halves = max(1, size // 8)  # of a warp, that 8 or 16 bytes to each lane take
                least[1] += max(fewest, min(halves, -(-len(lanes) * halves // 32)))
                taken[1] += passes_for(lanes, size)
            else:
                least[0] += fewest
                taken[0] += len(np.unique(words // SECTOR))

    def read(mask, array, index, n=1):
        noted(mask, array, index, n)

    def written(mask, array, index, *values):
        noted(mask, array, index, len(values))

    copies = {}
    args = tuple(_copied(arg, copies) for arg in record.args)
    with (
        mock.patch.object(lockstep, "note_read", read),
        mock.patch.object(lockstep, "note_write", written),
        mock.patch.object(lockstep, "set_out", _silently(lockstep.set_out)),
        mock.patch.object(lockstep._Shared, "array", staticmethod(allocated)),
    ):
        Simulator.launch.__wrapped__(
            Simulator("races"), record.kernel, record.grid, record.block, args, record.shared
        )
    return tuple(1.0 if not t else round(one / t, 3) for one, t in zip(least, taken, strict=True))


def _silently(set_out):
    """Let asynchronous copies set out without a race detector, which sees no other access here."""

    def quiet(*given):
        with mock.patch.object(lockstep, "_watch", None):
            set_out(*given)

    return quiet


def _copied(arg, copies):
    """Return an argument with copies of its arrays, the same one for the same array."""
    if isinstance(arg, tuple):
        made = (_copied(one, copies) for one in arg)
        return type(arg)(*made) if hasattr(arg, "_fields") else tuple(made)
    return copies.setdefault(id(arg), arg.copy() if isinstance(arg, np.ndarray) else arg)


def passes_for(addresses, size):
    """Return how often the banks are read or written for `size` bytes to each lane of a warp."""
    if size == 16 and len(addresses) == 32:
        return passes(addresses)
    total = 0
    for start in range(0, len(addresses), 32 * WORD // max(size, WORD)):
        lanes = addresses[start : start + 32 * WORD // max(size, WORD)]
        words = np.unique((lanes[:, None] + np.arange(0, size, WORD)) // WORD)
        total += max(collections.Counter(words % BANKS).values())
    return total


# Fusion


def stored(ptx):
    """Return the expressions of the real numbers that a kernel stores in global memory.

    What is loaded is a leaf, and of what branches choose among all is kept: two paths of a kernel
    that round alike have the same expressions.
    """
    made, stores = collections.defaultdict(list), []
    for line in ptx.splitlines():
        found = re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.]+)\s+(.*);", line)
        if found is None:
            continue
        name, operands = found[1], re.findall(r"[^\s,{}]+", found[2])
        if name.startswith("st.global"):
            stores += [operand for operand in operands[1:] if operand.startswith("%f")]
        elif not name.startswith(("st.", "bar.", "bra", "ret")):
            outputs = found[2].partition("}")[0].count(",") + 1 if found[2][0] == "{" else 1
            for operand in operands[:outputs]:
                made[operand].append((name, operands[outputs:]))

    def ways(operand, inside):
        if not operand.startswith("%f"):
            return {operand} if operand.startswith("0") else {"_"}
        if operand in inside:
            return set()
        return set().union(*(of_one(*one, (*inside, operand)) for one in made[operand]))

    def of_one(name, operands, inside):
        if name.startswith("ld."):
            return {"loaded"}
        if name.startswith(("mov", "selp")):
            return set().union(
                *(ways(one, inside) for one in operands[: 2 if "selp" in name else 1])
            )
        terms = (" or ".join(sorted(ways(operand, inside))) for operand in operands)
        return {f"{name}({', '.join(terms)})"}

    return {" or ".join(sorted(ways(operand, ()))) for operand in stores}
