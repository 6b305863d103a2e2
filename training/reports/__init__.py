"""Reports and model cards, as text, HTML and pictures."""
