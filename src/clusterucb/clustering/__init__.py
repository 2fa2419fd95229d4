"""Clusters of pool rows by the direction of their features. kmeans.py: spherical k-means, blockwise."""
