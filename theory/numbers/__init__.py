"""What a claim can be run in: floats, balls, symbols, numbers with an error bound, jets."""
