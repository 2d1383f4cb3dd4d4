"""One run, from a request to its report: folder, supervisor, processes of its jobs."""
