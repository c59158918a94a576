"""Ways to train sparse networks, side by side: one budget, one table, whoever wins."""
