"""A trained network made smaller and faster."""
