"""One run: its directory, its settings and inputs, what it has found and what it cost."""
