"""A radix tree over sequences of tokens, which knows for each beginning who holds it.

Tokens lie on the edges, so that what several hold is stored and compared once. A holder ends where a node
ends. The edge of a leaf grows in place while only one holds it: a decoded token costs one store.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

_ROOM = 64  # tokens that an edge is given more than it has; then it doubles


class Node:
    """A stretch of tokens behind those of its parent.

    Attributes:
        edge: its tokens, of which the first `size` count.
        start: how many tokens lie before it.
        holders: who holds all of it; of the root not known.
    """

    __slots__ = ("children", "edge", "holders", "parent", "size", "start")

    def __init__(self, parent: Node | None, tokens: Tokens) -> None:
        self.parent, self.edge, self.size = parent, tokens, len(tokens)
        self.start: int = parent.end if parent else 0
        self.children: dict[int, Node] = {}
        self.holders: set[Holder] = set()

    @property
    def end(self) -> int:
        """How many tokens lie before the end of it."""
        return self.start + self.size

    @property
    def tokens(self) -> Tokens:
        return self.edge[: self.size]

    def grow(self, tokens: Tokens) -> None:
        """Appends tokens."""
        size = self.size + len(tokens)
        if size > len(self.edge):
            larger = np.empty(max(size + _ROOM, 2 * len(self.edge)), np.int32)
            larger[: self.size] = self.tokens
            self.edge = larger
        self.edge[self.size : size] = tokens
        self.size = size


class Holder:
    """Whoever holds a sequence of tokens; it ends at the end of `node`."""

    __slots__ = ("node",)

    node: Node

    @property
    def length(self) -> int:
        """The tokens that it holds."""
        return self.node.start + self.node.size


class Tree:
    """What all holders hold."""

    def __init__(self) -> None:
        self.root = Node(None, np.empty(0, np.int32))

    def add(self, holder: Holder, tokens: Tokens) -> None:
        """A new holder of these tokens."""
        holder.node = self.root
        self.extend(holder, tokens)

    def extend(self, holder: Holder, tokens: Tokens) -> None:
        """It holds these too, behind what it holds."""
        first = node = holder.node
        if len(node.holders) == 1:
            node.grow(tokens)
            return
        at = 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                child = node.children[int(tokens[at])] = Node(node, np.array(tokens[at:], np.int32))
            size = common_length(child.tokens, tokens[at:])
            if size < child.size:
                child = _split(child, size)
            child.holders.add(holder)
            node = child
            at += size
        holder.node = node
        _join(first)

    def append(self, holder: Holder, token: int) -> None:
        """As `extend`, for one token."""
        node = holder.node
        if len(node.holders) == 1 and node.size < len(node.edge):
            node.edge[node.size] = token
            node.size += 1
        else:
            self.extend(holder, np.array([token], np.int32))

    def truncate(self, holder: Holder, length: int) -> None:
        """It holds only the first `length` of its tokens."""
        node = holder.node
        while node.parent and node.start >= length:
            node.holders.discard(holder)
            parent = node.parent
            if node.holders:
                _join(node)
            else:
                del parent.children[int(node.edge[0])]
            node = parent
        if length < node.end:
            if len(node.holders) == 1:
                node.size = length - node.start
            else:
                upper = _split(node, length - node.start)
                node.holders.discard(holder)
                _join(node)
                node = upper
        holder.node = node

    def remove(self, holder: Holder) -> None:
        """It holds nothing."""
        self.truncate(holder, 0)

    def tokens(self, holder: Holder) -> Tokens:
        """What it holds, as an array of its own."""
        edges = [node.tokens for node in _upwards(holder.node)]
        return np.concatenate(edges[::-1]) if edges else np.empty(0, np.int32)

    def match(self, tokens: Tokens) -> tuple[Node, int]:
        """How many of the tokens are held by anybody, and the node in which the last of those lies."""
        node, at = self.root, 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                break
            size = common_length(child.tokens, tokens[at:])
            node = child
            at += size
            if size < child.size:
                break
        return node, at

    def holders(self, tokens: Tokens) -> Iterator[tuple[Holder, int]]:
        """Everybody who holds a beginning of the tokens, and its length; the longest first."""
        node, length = self.match(tokens)
        seen: set[Holder] = set()
        for above in _upwards(node):
            for holder in above.holders - seen:
                yield holder, min(length, above.end)
            seen |= above.holders

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


def common_length(one: Tokens, other: Tokens) -> int:
    """How many tokens at the beginning of both are the same."""
    shorter = min(len(one), len(other))
    if not shorter:
        return 0
    different = one[:shorter] != other[:shorter]
    first = int(different.argmax())
    return first if different[first] else shorter


def _upwards(node: Node) -> Iterator[Node]:
    """The node and those above it, without the root."""
    while node.parent:
        yield node
        node = node.parent


def _split(node: Node, size: int) -> Node:
    """A new node of the first `size` tokens of this one, above it."""
    parent, tokens = node.parent, node.tokens
    assert parent is not None
    upper = Node(parent, tokens[:size].copy())
    parent.children[int(tokens[0])] = upper
    upper.holders = set(node.holders)
    upper.children[int(tokens[size])] = node
    node.parent, node.edge, node.size, node.start = upper, tokens[size:].copy(), node.size - size, upper.end
    return upper


def _join(node: Node) -> None:
    """Makes one node of it and its only child, if nobody ends between them."""
    if not node.parent or len(node.children) != 1:
        return
    (child,) = node.children.values()
    if len(child.holders) != len(node.holders):
        return
    node.grow(child.tokens)
    node.children = child.children
    for below in node.children.values():
        below.parent = node
    for holder in child.holders:
        if holder.node is child:
            holder.node = node
