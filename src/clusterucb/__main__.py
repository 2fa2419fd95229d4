"""`python -m clusterucb` is the command `clusterucb`."""

from clusterucb.cli.main import main

main()
