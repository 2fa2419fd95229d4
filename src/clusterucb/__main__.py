"""`python -m clusterucb` is the command `clusterucb`."""

from clusterucb.cli import main

main()
