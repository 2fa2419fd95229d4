import itertools
import json
import tracemalloc
import unicodedata
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from data_helpers import chat_record
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.data import contamination
from clusterucb.data.contamination import COMMON, MIN_WORDS, Hit, Probe, ProbeIndex, contaminated
from clusterucb.data.pool import Pool
from clusterucb.data.rows import Message, Row
from clusterucb.data.words import plain_words
from file_helpers import official_files, write

QUESTION = "A farmer has twelve red hens and nine white geese; how many birds are there in all?"


def row(*contents):
    return Row("r", "s", tuple(Message("user", content) for content in contents), b"")


def index_of(*texts, n=8):
    return ProbeIndex([Probe(f"p{i}", text) for i, text in enumerate(texts)], n)


def numbered(start, stop):
    """Words that occur nowhere else: "w3 w4 w5"."""
    return " ".join(f"w{i}" for i in range(start, stop))


# An independent, slow reading of the rule: sets of tuples of words.


def runs(text, length):
    words = text.split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def slow_probes(texts, n):
    """The n-grams that count, by probe."""
    lengths = [min(n, len(text.split())) for text in texts]
    within = Counter(gram for text in texts for length in set(lengths) for gram in runs(text, length))
    return [
        {gram for gram in runs(text, length) if length >= MIN_WORDS and within[gram] <= COMMON}
        for text, length in zip(texts, lengths, strict=True)
    ]


def slow_best(probes, contents):
    shares = [
        Fraction(sum(any(gram in runs(c, len(gram)) for c in contents) for gram in grams), len(grams) or 1)
        for grams in probes
    ]
    top = max(shares, default=Fraction(0))
    return (f"p{shares.index(top)}", float(top)) if top else None


texts_of_few_words = st.text("abc", max_size=14).map(lambda text: " ".join(text).replace("c", "ba"))


@given(
    st.lists(texts_of_few_words, max_size=30),
    st.lists(st.lists(texts_of_few_words, min_size=1, max_size=3), max_size=4),
    st.integers(MIN_WORDS, 9),
    st.sampled_from([0.1, 0.3, 0.5, 1.0]),
)
def test_hits_and_shares_are_those_of_sets_of_word_tuples(texts, pool, n, threshold):
    probes = slow_probes(texts, n)
    expected = [slow_best(probes, contents) for contents in pool]
    index = index_of(*texts, n=n)
    assert [index.best(*contents) for contents in pool] == expected
    assert index.skipped == sum(not grams for grams in probes)
    hits = list(contaminated(index, [row(*contents) for contents in pool], threshold))
    assert hits == [Hit(i, *best) for i, best in enumerate(expected) if best and best[1] >= threshold]


@pytest.mark.parametrize(
    "other",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\n\t  "),
        QUESTION.replace(";", " --").replace("?", "!!!"),
        "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in QUESTION),  # full-width letters
        QUESTION.replace("farmer", "far\u00admer\u200d"),  # soft hyphen, joiner
        f"Please help me with this. {QUESTION} Think step by step. {numbered(0, 300)}",
    ],
)
def test_case_space_punctuation_and_surroundings_do_not_matter(other):
    assert index_of(QUESTION).best(other) == ("p0", 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't pay $1,000_now (x²)", ["don", "t", "pay", "1", "000", "now", "x2"]),
        ("Cafe\u0301 STRASSE Stra\u00dfe", ["café", "strasse", "strasse"]),
        ("東京タワーは333m。", ["東", "京", "タ", "ワ", "ー", "は", "333m"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("대한민국의 수도는?", ["대한민국의", "수도는"]),
        ("كَتَبَ الدَّرْسَ؟", ["كَتَبَ", "الدَّرْسَ"]),
        ("বাংলাদেশের রাজধানী কোথায়?", ["বাংলাদেশের", "রাজধানী", "কোথায়"]),
        ("తెలుగు భాష", ["తెలుగు", "భాష"]),
        ("I ❤\ufe0f it 😀", ["i", "it"]),
        ("half \ud800 a pair", ["half", "a", "pair"]),
        (" ?! ", []),
    ],
)
def test_words_of_many_scripts(text, words):
    composed = [unicodedata.normalize("NFKC", word) for word in words]
    assert plain_words(text).split() == composed


def test_a_chinese_text_is_found_within_a_longer_one():
    index = index_of("中国最长的河流是哪一条河流")
    assert index.best("请回答:中国最长的河流是哪一条河流?谢谢") == ("p0", 1.0)
    assert index.best("法国最高的山峰是哪一座山峰") is None


@pytest.mark.parametrize(
    ("probes", "messages", "best"),
    [
        ([numbered(0, 8)], [numbered(0, 4), numbered(4, 8)], None),  # no n-gram spans two messages
        ([numbered(0, 17)], [numbered(0, 10), numbered(8, 17)], ("p0", 0.5)),  # shares of messages add up
        ([f"{numbered(0, 8)} {numbered(0, 8)}"], [numbered(0, 8)] * 2, ("p0", 1 / 8)),  # each n-gram once
        ([numbered(0, 30), numbered(0, 10), numbered(0, 9)], [numbered(0, 10)], ("p1", 1.0)),  # or the first
    ],
)
def test_shares_in_exact_fractions(probes, messages, best):
    assert index_of(*probes).best(*messages) == best


def test_exactly_the_threshold_counts():
    index = index_of(numbered(0, 17))  # 10 n-grams
    half, less = row(numbered(0, 12)), row(numbered(0, 11))
    assert list(contaminated(index, [less, half])) == [Hit(1, "p0", 0.5)]
    assert [hit.row for hit in contaminated(index, [less, half], 0.4)] == [0, 1]


def test_a_short_text_is_found_as_an_equal_run_only():
    index = index_of("What is the capital of France?", "Who wrote it")
    assert index.skipped == 1
    assert index.best("Tell me, what is the capital of France today?") == ("p0", 1.0)
    assert index.best("What is the capital of Spain and of France?") is None
    assert index.best("Who wrote it?") is None


def test_a_header_that_many_probes_share_is_no_hit():
    header = numbered(1000, 1040)
    many = index_of(*(f"{header} {numbered(20 * i, 20 * i + 12)}" for i in range(COMMON + 1)))
    assert many.skipped == 0
    assert many.best(header) is None
    assert many.best(numbered(20, 32)) == ("p1", 5 / 12)  # of the 12 that end behind the header
    few = index_of(*(f"{header} {numbered(20 * i, 20 * i + 12)}" for i in range(COMMON)))
    assert few.best(header) == ("p0", 33 / 45)


def test_probes_of_common_phrases_only_are_skipped():
    phrase = "Which of the following is true?"
    longer = [f"{numbered(20 * i, 20 * i + 9)}. {phrase}" for i in range(COMMON)]
    index = index_of(phrase, *longer)
    assert index.skipped == 1
    assert index.best(phrase) is None
    assert index_of(phrase, *longer[1:]).best(phrase) == ("p0", 1.0)
    assert index_of(*[QUESTION] * (COMMON + 1)).skipped == COMMON + 1


@pytest.mark.parametrize("texts", [[], ["", "?", "too short"]])
def test_an_index_of_nothing_finds_nothing(texts):
    index = index_of(*texts)
    assert index.skipped == len(texts)
    assert index.best() is None
    assert list(contaminated(index, [row(QUESTION), row("")])) == []


def test_a_pool_is_read_in_order_and_progress_is_told(tmp_path):
    records = [chat_record("Hello there."), chat_record(f"Well. {QUESTION}"), chat_record("Sure?", QUESTION)]
    told = []
    pool = Pool.read(write(tmp_path / "pool.jsonl", records))
    hits = contaminated(index_of(QUESTION), pool, progress=told.append)
    assert list(hits) == [Hit(1, "p0", 1.0), Hit(2, "p0", 1.0)]
    assert told == [1, 1, 1]


def test_orders_of_the_same_words_have_different_hashes():
    words = ["a", "b", "c", "ab", "ba", "aa", "bb", "0"]
    plains = [" ".join(order) for order in itertools.permutations(words)]
    assert len(np.unique(contamination._grams(plains, [8]))) == len(plains)


def test_a_very_long_row_is_hashed_like_a_short_one():
    assert len(long := numbered(0, 20_000)) > 2 * contamination._KEPT_POWERS
    assert index_of(numbered(19_980, 20_000)).best(long) == ("p0", 1.0)
    assert index_of(long).best(long) == ("p0", 1.0)


def test_memory_does_not_grow_with_the_pool():
    index = index_of(*(numbered(i, i + 20) for i in range(0, 2000, 20)))

    def peak(rows):
        pool = (row(numbered(10 * i, 10 * i + 20), f"é{i}") for i in range(rows))
        tracemalloc.start()
        found = sum(1 for _ in contaminated(index, pool))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found > 0
        return most

    peak(100)  # what is computed once
    few, many = 300, 3_000
    assert peak(many) < peak(few) + 60 * (many - few)  # anything kept of each row would take more


def test_hashes_are_the_same_in_every_process():
    hashes = contamination._grams([plain_words(QUESTION), "é ü ö 東"], [4, 8])
    assert (len(hashes), np.bitwise_xor.reduce(hashes)) == (25, 0x73B8E2A9CB97BC70)


def test_real_gsm8k_train_has_hardly_any_test_question():
    def rows(name):
        lines = (official_files() / "gsm8k" / name).read_text(encoding="utf-8").splitlines()
        return [row(record["question"], record["answer"]) for record in map(json.loads, lines)]

    index = ProbeIndex(Probe(str(i), r.messages[0].content) for i, r in enumerate(rows("test.jsonl")))
    hits = list(contaminated(index, rows("train.jsonl")))
    assert {hit.probe for hit in hits} == {"602"}  # the same question with other numbers
