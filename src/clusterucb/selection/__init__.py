"""Which rows to score next, and which to keep: the bandit of ClusterUCB. numpy only, no torch.

share.py        an exact share of N rows, and the best rows by score
budget.py       what may be drawn and what is kept, as a value that refuses
arms.py         what a policy sees
policies.py     the published policies
bandit.py       select(): the paper's algorithm
known.py        what is known of rows before they are drawn
linear_ucb.py   linear_ucb(): row by row, by what is known
regression.py   what it learns from the draws
selector.py     both with their settings as one value, and the full method beside them
round_robin.py  the selection of RDS+
checks.py       what all of these refuse
"""
