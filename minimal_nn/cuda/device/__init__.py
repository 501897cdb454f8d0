"""All that knows the device: kernels, launches, arrays, instructions, assembly.

language      what kernels are made of, and the one import of numba.cuda
current       the protocol Device, and which one it is now
chip          the real one; errors: what its driver says, in one sentence
arguments     what a kernel takes, and its types
launch        one launch, prepared launches, graphs, records
arrays        device arrays, and what is refused
intrinsics    instructions without a name in Numba: 16-byte loads, copies, tensor cores
assembly      what kernels become on the chip; cubins: a folder of that
toolkit       where NVIDIA's tools and libraries are
private       what of numba-cuda is used that is not public
"""
