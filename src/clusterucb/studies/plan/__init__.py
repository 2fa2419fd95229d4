"""What a run would cost, before anything runs: counts, time and disk by step."""
