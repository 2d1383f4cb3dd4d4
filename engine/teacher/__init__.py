"""Phase 1: the teacher scores."""
