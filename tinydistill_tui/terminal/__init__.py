"""The terminal: its size, its keys, its characters and the first frame."""
