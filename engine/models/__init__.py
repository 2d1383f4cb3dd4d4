"""Reading, streaming and cutting models."""
