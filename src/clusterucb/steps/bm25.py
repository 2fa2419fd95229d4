"""The baseline `bm25`: rows whose words are those of the target.

BM25 in Lucene's form, by the library bm25s (Lù 2024, arXiv 2407.03618), with k1 1.5 and b 0.75. The score of
document d for query q is the sum over the words t of q, as often as they occur in it, of

    ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 (1 - b + b |d| / mean |d|))

with N documents, n_t of them with t, f occurrences of t in d and |d| words in d. There are no stop words and
no stemmer, as these belong to one language: a word that is everywhere weighs almost nothing.

Knows texts and numbers; nothing of models, pools or selection.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.words import plain_words
from clusterucb.errors import InputError


def bm25_scores(
    documents: Iterable[str],
    queries: Sequence[str],
    codes: NDArray[np.int64],
    progress: Callable[[int], None] = lambda _documents: None,
) -> NDArray[np.float64]:
    """Score of each document, (N,): the maximum over subtasks of the mean over a subtask's queries.

    In memory are the words of the documents that queries have, 4 bytes an occurrence and about 40 bytes
    for each document that a word is in while the index is made, and three numbers a document.

    Args:
        documents: N texts, read once, one at a time.
        queries: n texts.
        codes: subtask of each query, 0 to S - 1, (n,).
        progress: told 1 after each document that was read.

    Raises:
        InputError: no document has a word of a query.
    """
    from bm25s import BM25

    words = [plain_words(query).split() for query in queries]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(words)))}
    read = _Documents(documents, vocabulary, progress)
    if not len(read.known):
        raise InputError("bm25: no row of the pool has a word of the target; use another method")
    index = BM25(k1=1.5, b=0.75, method="lucene")
    corpus = SimpleNamespace(ids=read, vocab={**vocabulary, "": read.other})
    index.index(corpus, create_empty_token=False, show_progress=False)

    best = np.full(len(read), -np.inf)
    for code in range(int(codes.max()) + 1):
        own = np.flatnonzero(codes == code)
        total = np.zeros(len(best))
        for query in own.tolist():
            total += index.get_scores_from_ids([vocabulary[word] for word in words[query]])
        np.maximum(best, total / len(own), out=best)
    return best


class _Documents:
    """Documents, read one at a time, as word numbers; the words that no query has share one number."""

    def __init__(
        self, documents: Iterable[str], vocabulary: dict[str, int], progress: Callable[[int], None]
    ) -> None:
        self.other = len(vocabulary)
        self.known = array("i")
        """Numbers of the queries' words, document by document."""
        self.ends, self.lengths = array("q"), array("q")
        for document in documents:
            words = plain_words(document).split()
            self.known.extend(vocabulary[word] for word in words if word in vocabulary)
            self.ends.append(len(self.known))
            self.lengths.append(len(words))
            progress(1)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for end, length in zip(self.ends, self.lengths, strict=True):
            known = self.known[start:end].tolist()
            yield known + [self.other] * (length - len(known))
            start = end
