"""Several methods side by side: runs that share what they have in common, and one table of them."""
