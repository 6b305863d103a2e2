"""Training on the workers of a Dask cluster (extra `distributed`)."""
