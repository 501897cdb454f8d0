"""What claims are measured on: built-in networks, and controlled random walks."""
