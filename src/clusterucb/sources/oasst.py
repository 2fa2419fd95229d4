"""OASST1: a tree of replies, every path of which from the prompt to a last reply is a conversation.

It comes as one tree a line (`*.trees.jsonl.gz`) or as one message a row (`*.messages.jsonl.gz`, parquet),
where the rows of a tree stand together. One tree is in memory at a time, and none is walked by recursion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from clusterucb.data.rows import Message, unexpected
from clusterucb.errors import InputError
from clusterucb.sources.source import Conversation, Item, RawRows, free_key

TREE_COLUMNS = ("message_tree_id", "prompt")
FLAT_COLUMNS = ("message_tree_id", "message_id", "parent_id", "text", "role")

_ROLES = ("prompter", "assistant")  # by depth, in turn
_WRITTEN = ("user", "assistant")
_Node = Mapping[str, Any]


def convert_oasst(rows: RawRows) -> Iterator[Item]:
    """All conversations of all trees, in the order of the trees and of the replies' ranks.

    A message that is deleted, empty, of an unknown role or of the role of its parent is cut off with
    all below it, and counted. What remains ends in an assistant's reply or is counted as "no reply".
    """
    keys = set[str]()
    for number, (tree, where) in enumerate(_trees(rows)):
        for item in [tree] if isinstance(tree, str) else _paths(tree, where):
            if isinstance(item, Conversation):
                item = Conversation(free_key(item.key, number, keys), item.messages)
            yield item


def _trees(rows: RawRows) -> Iterator[tuple[_Node | str, str]]:
    """The trees, as they stand there or grown from flat rows.

    Raises InputError for a tree whose rows do not stand together: in a file put into another order
    nearly every tree would be cut to pieces without a word.
    """
    seen = set[str]()
    for tree_id, group in groupby(rows, lambda row: row[0]["message_tree_id"]):
        messages = []
        for record, where in group:
            if "prompt" in record:
                yield _checked(record["prompt"], where), where
            else:
                messages.append(({**_checked(record, where), "replies": []}, where))
        if not messages:
            continue
        if str(tree_id) in seen:
            raise InputError(
                f"{messages[0][1]}: tree {tree_id!r:.60} was met before, expected its rows one after "
                "another. Sort the file by message_tree_id"
            )
        seen.add(str(tree_id))
        yield from _linked(messages)


def _linked(messages: list[tuple[dict[str, Any], str]]) -> Iterator[tuple[_Node | str, str]]:
    """The roots, with all replies hung into place; a child may stand before its parent."""
    by_id: dict[str, dict[str, Any]] = {}
    for message, where in messages:
        if by_id.setdefault(message["message_id"], message) is not message:
            yield "repeated message", where
    reached = [message for message in by_id.values() if message["parent_id"] is None]
    roots = tuple(reached)
    for message in by_id.values():
        if message["parent_id"] is not None and str(message["parent_id"]) in by_id:
            by_id[str(message["parent_id"])]["replies"].append(message)
    for message in reached:  # it grows meanwhile
        reached += message["replies"]
    where = messages[0][1]
    # A filtered file lacks some parents; what hung below them reaches no prompt.
    yield from [("unknown parent", where)] * (len(by_id) - len(reached))
    yield from ((root, where) for root in roots)


def _paths(root: _Node, where: str) -> Iterator[Item]:
    fault = _fault(root, 0)
    if fault:
        yield fault
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
                yield fault
            else:
                usable.append((reply, depth + 1))
        stack.extend(reversed(usable))
        if not usable:
            yield Conversation(node["message_id"], tuple(path)) if depth % 2 else "no reply"


def _ranked(node: _Node, where: str) -> list[_Node]:
    """The replies, the best ranked first, those without a rank last, else as they stand."""
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise unexpected(f"{where}: replies", replies, "a list of messages")
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
        raise unexpected(f"{where}: a message", node, "{message_id, text, role, ...}")
    for column in ("message_id", "text", "role"):
        if not isinstance(node.get(column), str):
            raise unexpected(f"{where}: {column} of a message", node.get(column), "a string. Repair the row")
    return node
