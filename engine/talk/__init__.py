"""Chat with a model: a process that holds it, and its client."""
