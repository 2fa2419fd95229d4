"""What one forward pass tells of each row, without a gradient: passes.py, and hidden states by them."""
