"""The wizard: a reader of events and a writer of settings."""
