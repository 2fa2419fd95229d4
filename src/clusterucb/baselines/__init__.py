"""What gradient-based selection is compared with: random rows, BM25, hidden states (RDS+), losses."""
