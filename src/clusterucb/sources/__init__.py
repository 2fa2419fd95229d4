"""The eight instruction data sets of the papers, from their official raw files to rows of `messages`."""

from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import Report, prepare, source_named
from clusterucb.sources.source import Conversation, Dropped, Source

__all__ = ["SOURCES", "Conversation", "Dropped", "Report", "Source", "prepare", "source_named"]
