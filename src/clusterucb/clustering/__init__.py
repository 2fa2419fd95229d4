"""Clusters of pool rows by the direction of their features: kmeans.py, and nearest.py, its inner step."""
