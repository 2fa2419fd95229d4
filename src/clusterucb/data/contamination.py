"""Near duplicates in the pool of texts that training must not see, by the n-grams of words they share.

The rule is that of Tulu 3's decontamination (Lambert et al., 2024): a row is a near duplicate of a text if
at least half of the text's distinct 8-grams of words occur in the row, within one message.

    short     a text of fewer than n words is one gram of all its words: only an equal run is a hit
    common    an n-gram in more than `COMMON` of the texts is a phrase of their form ("which of the following
              is"), or one text given many times: it tells none of them apart, and counts for none

N-grams are 64-bit hashes, about 50 bytes for each of the texts'; a row looked up leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from clusterucb.data.rows import Row
from clusterucb.data.words import plain_words

MIN_WORDS = 4
"""A text of fewer words is no probe: its words stand together by chance."""

COMMON = 10
"""An n-gram in more probes than this counts for none of them."""

# Any odd numbers with bits all over; the base's inverse moves a hash to where its run begins.
_BASE, _MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
_INVERSE = pow(_BASE, -1, 1 << 64)
_KEPT_POWERS = 1 << 14  # characters of all but the longest rows

Hashes = npt.NDArray[np.uint64]
_NONE: Hashes = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Probe:
    """A text that training must not see, one message: a conversation is best given by its questions."""

    id: str
    """How a report names it: "gsm8k/test/17", "holdout.jsonl:3"."""
    text: str


@dataclass(frozen=True)
class Hit:
    """A row that is a near duplicate of a probe."""

    row: int
    """Position among the rows."""
    probe: str
    """Id of the probe that the row has the largest share of; of equals, the first."""
    share: float
    """Share of the probe's n-grams that occur in the row, 0..1."""


class ProbeIndex:
    """The probes by their n-grams of `n` words, at least `MIN_WORDS`.

    An n-gram in more than `common` probes counts for none of them; few rows of one form, such as a target's,
    need a lower number.
    """

    def __init__(self, probes: Iterable[Probe], n: int = 8, common: int = COMMON) -> None:
        self._common = common
        probes = list(probes)
        texts = [plain_words(probe.text) for probe in probes]
        self._ids = [probe.id for probe in probes]
        self._build(texts, [min(text.count(" ") + 1, n) for text in texts])
        self.skipped: int = int((self._sizes == 0).sum())
        """Probes that find nothing: of fewer than `MIN_WORDS` words, or with only common n-grams."""

    def best(self, *texts: str) -> tuple[str, float] | None:
        """(id, share) of the probe with the largest share of its n-grams in the texts of one row.

        No n-gram spans two texts. Of probes with equal shares the first; None if no n-gram is found.
        """
        found = self._find([plain_words(text) for text in texts])
        if not len(found):
            return None
        owners = [self._owners[self._starts[gram] : self._starts[gram + 1]] for gram in found]
        probes, shared = np.unique(np.concatenate(owners), return_counts=True)
        shares = shared / self._sizes[probes]
        first = int(np.argmax(shares))
        return self._ids[probes[first]], float(shares[first])

    def _build(self, texts: list[str], lengths: list[int]) -> None:
        """Index the texts, each by its grams of one length. A pair is a text and a gram of it."""
        self._lengths = sorted({length for length in lengths if length >= MIN_WORDS})
        own = [
            np.unique(_grams([text], [length])) if length >= MIN_WORDS else _NONE
            for text, length in zip(texts, lengths, strict=True)
        ]
        owners = np.repeat(np.arange(len(own)), np.array([len(grams) for grams in own], np.int64))  # (pairs,)
        grams, gram = np.unique(np.concatenate([_NONE, *own]), return_inverse=True)  # (grams,), (pairs,)
        self._set_grams(grams)
        rare = self._probe_counts(texts)[gram] <= self._common
        gram, owners = gram[rare], owners[rare]
        self._sizes = np.bincount(owners, minlength=len(own))  # (probes,), grams that count
        kept, gram = np.unique(gram, return_inverse=True)
        self._set_grams(grams[kept])
        # The probes of gram g are _owners[_starts[g]:_starts[g + 1]].
        self._owners = owners[np.argsort(gram, kind="stable")].astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(gram, minlength=len(kept)))])

    def _set_grams(self, grams: Hashes) -> None:
        """The sorted grams to find, and a table by their first bits that rules most others out at once."""
        bits = max(8, (16 * len(grams)).bit_length())
        self._grams, self._shift = grams, np.uint64(64 - bits)
        self._possible = np.zeros(1 << bits, np.bool_)
        self._possible[grams >> self._shift] = True

    def _probe_counts(self, texts: list[str]) -> npt.NDArray[np.int64]:
        """In how many probes each gram occurs; that of a short probe within longer ones too."""
        counts = np.zeros(len(self._grams), np.int64)
        for text in texts:
            counts[self._find([text])] += 1
        return counts

    def _find(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Positions of the index's grams that occur in the texts, ascending, each once."""
        grams = _grams(texts, self._lengths)
        grams = grams[self._possible[grams >> self._shift]]
        at = self._grams.searchsorted(grams, side="right") - 1
        found = at[self._grams[at] == grams] if len(grams) else at
        return np.unique(found) if len(found) else found


def contaminated(
    index: ProbeIndex,
    rows: Iterable[Row],
    threshold: float = 0.5,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Iterator[Hit]:
    """The rows that have at least `threshold` of some probe's n-grams in their messages, in order.

    Rows, of a Pool or others, are read once, one at a time; `progress` is told 1 after each.
    """
    for i, row in enumerate(rows):
        best = index.best(*(message.content for message in row.messages))
        if best is not None and best[1] >= threshold:
            yield Hit(i, *best)
        progress(1)


def _grams(plains: Sequence[str], lengths: Sequence[int]) -> Hashes:
    """The hashes of all runs of so many words within one text, for each of the `lengths`.

    That of a run of characters c_0, c_1, ... is sum mix(c_i) * base^i modulo 2^64: the difference of two
    sums from the beginning, moved to where the run begins.
    """
    # A line for each text; its words are parted by single spaces.
    codes = np.frombuffer("\n".join(plains).encode("utf-32-le"), "<u4").astype(np.uint64)  # (characters,)
    (gaps,) = (codes <= ord(" ")).nonzero()
    starts, ends = np.concatenate(([0], gaps + 1)), np.concatenate((gaps, [len(codes)]))  # (words,)
    text = np.concatenate(([0], (codes[gaps] == ord("\n")).cumsum()))  # (words,), number of a word's text
    sums = np.zeros(len(codes) + 1, np.uint64)
    (_mixed(codes) * _powers(_BASE, len(codes))).cumsum(out=sums[1:])
    back = _powers(_INVERSE, len(codes) + 1)
    found = [_NONE]
    for length in lengths:
        last = ends[length - 1 :]
        first = starts[: len(last)]
        within = text[length - 1 :] == text[: len(last)]
        found.append(((sums[last] - sums[first]) * back[first])[within])
    return np.concatenate(found)


def _mixed(codes: Hashes) -> Hashes:
    """The characters' codes with bits all over."""
    mixed: Hashes = codes * np.uint64(_MIX)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_MIX)
    return mixed


def _powers(base: int, count: int) -> Hashes:
    """base^1, base^2, ..., base^count modulo 2^64."""
    if count <= _KEPT_POWERS:
        return _first_powers(base)[:count]
    return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)


@cache
def _first_powers(base: int) -> Hashes:
    return np.cumprod(np.full(_KEPT_POWERS, base, np.uint64), dtype=np.uint64)
