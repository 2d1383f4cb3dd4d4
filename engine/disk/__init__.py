"""Files and folders that are written whole or not at all, locks, and where a test can make the disk fail."""
