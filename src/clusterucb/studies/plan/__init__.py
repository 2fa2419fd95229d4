"""What a run would cost, before anything runs: counts, time, disk and memory by step."""
