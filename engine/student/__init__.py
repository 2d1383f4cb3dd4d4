"""Phase 2: the student learns."""
