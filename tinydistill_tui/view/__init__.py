"""Events and plans as values and texts for a screen: no widgets, and no files but the table of suggestions."""
