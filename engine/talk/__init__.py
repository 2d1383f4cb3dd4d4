"""Trying a model out: a process that holds it, and the side that talks to it."""
