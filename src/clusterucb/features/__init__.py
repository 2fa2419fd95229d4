"""Vectors of rows: kept on disk, compared, clustered."""
