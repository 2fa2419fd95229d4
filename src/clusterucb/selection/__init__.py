"""Which rows to score next, and which to keep: the bandit of ClusterUCB. numpy only, no torch.

share.py      an exact share of N rows
top.py        the best rows by score
threshold.py  the running quantile of all draws, and each arm's draws that reach it
arms.py       what a policy sees
policies.py   the published policies
shortlist.py  the best arm by a policy, without scoring all of them for every draw
bandit.py     select(): the paper's algorithm
selector.py   select() with its settings as one value, and the full method beside it
checks.py     what it refuses
"""
