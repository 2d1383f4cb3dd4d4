"""Screens: each shows what is there and asks for what is needed."""
