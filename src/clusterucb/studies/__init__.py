"""Before, beside and without runs: what one would cost, several compared, policies tried."""
