"""Other ways to train sparse, a method a file, for the arena."""
