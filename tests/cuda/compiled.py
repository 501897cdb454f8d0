"""The compiled half of a kernel's test: what the simulator cannot show.

    with launch.simulation(), launch.recorded() as records:
        batchnorm.forward(...)
    compiled.check(records)

`check` assembles every kernel of the records once for each signature, for sm_90a, and fails with
all that `assembly.faults` finds: spills, a stack, registers over the launch bounds, atomics,
float64 in float32.
"""

import pytest

from minimal_nn.cuda import assembly

_seen = {}


def assembled(record):
    """Return the assembly of a recorded launch; each kernel and signature is compiled once."""
    key = (record.kernel, record.signature)
    if key not in _seen:
        _seen[key] = assembly.assemble(record.kernel, record.signature)
    return _seen[key]


def check(records):
    """Fail where a recorded kernel has a fault; return the assemblies by kernel name."""
    try:
        assembly.tool("ptxas")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert records, "no launch was recorded"
    found = [assembled(record) for record in records]
    faults = [fault for one in found for fault in assembly.faults(one)]
    assert not faults, "\n".join(dict.fromkeys(faults))
    return {one.name: one for one in found}
