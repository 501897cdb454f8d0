"""All that knows the device: launches, arrays, instructions, assembly."""
