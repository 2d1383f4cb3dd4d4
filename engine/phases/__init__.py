"""What each phase does with the settings of a run."""
