"""Models in torch: loading, cutting, packed rows, quantised weights; streaming is a folder of its own."""
