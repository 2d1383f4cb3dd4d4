"""The teacher's records on disk."""
