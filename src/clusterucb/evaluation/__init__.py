"""How good the trained adapter is."""
