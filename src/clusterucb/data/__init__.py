"""Pools and targets as rows, rows as chat text, chat text as tokens with labels. Knows no torch."""
