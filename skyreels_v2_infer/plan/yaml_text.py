"""YAML texts of users: read with the safe tags only, and bounded, since a short text can stand for an endless one."""

from __future__ import annotations

import re

from skyreels_v2_infer.errors import first_line

MOST_WRITTEN_OUT = 2**21  # characters and values once every alias is replaced by what it stands for
DEEPEST = 40  # mappings and lists within each other
LONGEST_NUMBER = 100  # characters; PyYAML takes seconds for a whole number in base 60 of some thousand


def read_yaml(text: str) -> object:
    """The values of a document: mappings, lists, texts, numbers, dates, true, false and null.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: it is no YAML, has a key twice, is nested too deeply, or grows too large by its aliases.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)  # the former is ten times as fast
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if written_out(node, {}) > MOST_WRITTEN_OUT:
            raise ValueError("its aliases stand for too much")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(in_a_few_words(error, text)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise
    except Exception:  # !!bool x is a KeyError
        raise ValueError("a value is not of the kind that its tag says") from None


def written_out(node, known: dict[int, int | None], depth: int = 0) -> int:
    """Characters and values of a node of PyYAML's, counted each time that they are referred to.

    Args:
        known: sizes of nodes by `id`; None: the node that is being counted.

    Raises:
        ValueError: a node contains itself, is nested too deeply or has a key twice, or a number is too long.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError(f"line {line_of(node)}: it contains itself")
        return size
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    known[id(node)] = None
    if isinstance(node.value, str):
        size = 1 + len(node.value)
        if node.tag.endswith((":int", ":float")):
            check_number(node)
    else:
        pairs = [pair for pair in node.value if isinstance(pair, tuple)]
        parts = [part for pair in pairs for part in pair] or node.value
        size = 1 + sum(written_out(part, known, depth + 1) for part in parts)
        keys: set[tuple[str, str]] = set()
        for key, _ in pairs:
            if isinstance(key.value, str) and (key.tag, key.value) in keys:
                raise ValueError(f"line {line_of(key)}: {key.value[:60]} is given twice")
            keys.add((key.tag, str(key.value)))
    known[id(node)] = size
    return size


def check_number(node) -> None:
    """Raises a `ValueError` for a number that is too long, or that means another one than it seems to."""
    if len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"line {line_of(node)}: a number of {len(node.value)} characters")
    if ":" in node.value or re.match("[-+]?0[0-9_]", node.value):
        base = "60" if ":" in node.value else "8"
        raise ValueError(f"line {line_of(node)}: {node.value} is a number in base {base}; a text needs quotes")


def line_of(node) -> int:
    return node.start_mark.line + 1


def in_a_few_words(error: Exception, text: str) -> str:
    """What is wrong with a text, and where; PyYAML's own first line names what it was reading instead."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem:
        return first_line(error, 100)
    if mark is None:
        return problem[:100]
    return f"line {min(mark.line, text.count(chr(10))) + 1}: {problem[:100]}"  # it may be behind the end
