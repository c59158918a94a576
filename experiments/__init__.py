"""The experiments of the paper, runnable: ``python -m experiments.<command>``."""
