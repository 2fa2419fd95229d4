"""The eight instruction data sets of the papers, from their official raw files to rows of `messages`."""

from clusterucb.sources.conversion import prepare as prepare
