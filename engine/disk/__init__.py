"""Atomic writing of files and folders, locks, and fault injection for tests."""
