"""Looking at the data of a run before it begins."""
