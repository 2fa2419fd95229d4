"""Policies, budgets, clusters and seeds tried on features that are stored: no model, and no new gradient.

grid.py        what is tried
truth.py       what scoring all rows would tell, and how much of it a selection found
simulate.py    simulate(): every run of the grid
stores.py      problems from run directories, feature folders and LESS's gradient files
less_store.py  what LESS's files hold
custom.py      policies by name, and of one's own as module:callable
outcomes.py    outcomes as tables and CSV, their spread over seeds
plot.py        the spreads as a page
"""
