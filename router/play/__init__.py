"""`broker play`: a page in the browser on one's own bundle, served to this machine only."""
