"""Policies, budgets, clusters and seeds tried on features that are stored: no model, and no new gradient."""
