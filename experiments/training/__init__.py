"""Training runs: what defines one, what trains it, and how it is read back."""
