"""What is asked of finished runs, one analysis a file."""
