"""A model of any size, a layer at a time: read ahead, run for all micro-batches, given back."""
