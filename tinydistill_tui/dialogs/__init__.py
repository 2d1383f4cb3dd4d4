"""Boxes over a screen: a question, a name, a file, help, a page."""
