"""Work of each phase, from the settings of a run."""
