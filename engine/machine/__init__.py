"""The machine that a run computes on: what its devices can do, and what torch says of them."""
