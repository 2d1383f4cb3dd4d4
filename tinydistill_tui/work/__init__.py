"""The wizard's work outside its event loop: files, threads and processes."""
