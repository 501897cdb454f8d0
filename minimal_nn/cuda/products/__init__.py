"""Matrix products, a ladder to read: tiled, blocked, tensor, and the choice among them."""
