"""Which rows to score next, and which to keep: the bandit of ClusterUCB. numpy only, no torch."""
