"""OASST1: a tree of replies, every path of which from the prompt to a last reply is a conversation.

It comes as one tree a line (`*.trees.jsonl.gz`) or as one message a row (`*.messages.jsonl.gz`, parquet),
where the rows of a tree stand together. One tree is in memory at a time, and none is walked by recursion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from typing import Any

from clusterucb.data.rows import Message
from clusterucb.errors import InputError
from clusterucb.sources.source import Conversation, Dropped, RawRows, free_key

TREE_COLUMNS = ("message_tree_id", "prompt")
FLAT_COLUMNS = ("message_tree_id", "message_id", "parent_id", "text", "role")

_ROLES = ("prompter", "assistant")  # by depth, in turn
_WRITTEN = ("user", "assistant")
_Node = Mapping[str, Any]


def convert_oasst(rows: RawRows) -> Iterator[Conversation | Dropped]:
    """All conversations of all trees, in the order of the trees and of the replies' ranks.

    A message that is deleted, empty, of an unknown role or of the role of its parent is cut off with
    all below it, and counted. What remains ends in an assistant's reply or is counted as "no reply".
    """
    first = next(rows, None)
    if first is None:
        return
    rows = chain([first], rows)
    trees = _trees(rows) if "prompt" in first[0] else _grown(rows)
    keys = set[str]()
    for number, (tree, where) in enumerate(trees):
        if isinstance(tree, Dropped):
            yield tree
            continue
        for item in _paths(tree, where):
            if isinstance(item, Conversation):
                item = Conversation(free_key(item.key, number, keys), item.messages)
            yield item


def _trees(rows: RawRows) -> Iterator[tuple[_Node | Dropped, str]]:
    for record, where in rows:
        yield _checked(record["prompt"], where), where


def _grown(rows: RawRows) -> Iterator[tuple[_Node | Dropped, str]]:
    """The trees of flat rows.

    Raises InputError for a tree whose rows do not stand together: in a file put into another order
    nearly every tree would be cut to pieces without a word.
    """
    seen = set[str]()
    for tree_id, group in groupby(rows, lambda row: row[0]["message_tree_id"]):
        messages = [({**_checked(record, where), "replies": []}, where) for record, where in group]
        where = messages[0][1]
        if str(tree_id) in seen:
            raise InputError(
                f"{where}: tree {tree_id!r:.60} was met before, expected its rows one after another. "
                "Sort the file by message_tree_id"
            )
        seen.add(str(tree_id))
        yield from _linked(messages)


def _linked(messages: list[tuple[dict[str, Any], str]]) -> Iterator[tuple[_Node | Dropped, str]]:
    """The roots, with all replies hung into place; a child may stand before its parent."""
    by_id: dict[str, dict[str, Any]] = {}
    for message, where in messages:
        if by_id.setdefault(message["message_id"], message) is not message:
            yield Dropped("repeated message"), where
    roots = []
    for message in by_id.values():
        parent = message["parent_id"]
        if parent is None:
            roots.append(message)
        elif str(parent) in by_id:
            by_id[str(parent)]["replies"].append(message)
    where = messages[0][1]
    # A filtered file lacks some parents; what hung below them reaches no prompt.
    for _ in range(len(by_id) - sum(map(_size, roots))):
        yield Dropped("unknown parent"), where
    yield from ((root, where) for root in roots)


def _size(root: _Node) -> int:
    count, stack = 0, [root]
    while stack:
        count += 1
        stack.extend(stack.pop()["replies"])
    return count


def _paths(root: _Node, where: str) -> Iterator[Conversation | Dropped]:
    fault = _fault(root, 0)
    if fault:
        yield Dropped(fault)
        return
    path: list[Message] = []
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        del path[depth:]
        path.append(Message(_WRITTEN[depth % 2], node["text"].strip()))
        usable = []
        for reply in _ranked(node, where):
            fault = _fault(reply, depth + 1)
            if fault:
                yield Dropped(fault)
            else:
                usable.append((reply, depth + 1))
        stack.extend(reversed(usable))
        if not usable:
            yield Conversation(node["message_id"], tuple(path)) if depth % 2 else Dropped("no reply")


def _ranked(node: _Node, where: str) -> list[_Node]:
    """The replies, the best ranked first, those without a rank last, else as they stand."""
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise InputError(f"{where}: replies is {replies!r:.60}, expected a list of messages")
    return sorted((_checked(reply, where) for reply in replies), key=_rank)


def _rank(node: _Node) -> tuple[bool, float]:
    rank = node.get("rank")
    if isinstance(rank, (int, float)) and rank == rank:  # a table may have NaN for no rank
        return False, rank
    return True, 0


def _fault(node: _Node, depth: int) -> str:
    """Why this message and all below it cannot be used, "" if they can."""
    if node.get("deleted"):
        return "deleted message"
    if node["role"] not in _ROLES:
        return "unknown role"
    if node["role"] != _ROLES[depth % 2]:
        return "roles out of turn"
    return "" if node["text"].strip() else "empty message"


def _checked(node: Any, where: str) -> _Node:
    """Raises InputError if this is no message."""
    if not isinstance(node, dict):
        raise InputError(f"{where}: a message is {node!r:.60}, expected {{message_id, text, role, ...}}")
    for column in ("message_id", "text", "role"):
        if not isinstance(node.get(column), str):
            raise InputError(
                f"{where}: {column} of a message is {node.get(column)!r:.60}, expected a string. "
                "Repair the row"
            )
    return node
