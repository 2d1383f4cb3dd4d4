"""Widgets: one idea, one file each."""
