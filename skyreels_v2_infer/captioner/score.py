"""How well captions agree with a reference: the accuracy of every field, as in the published table.

Options, TYPES and is_main_subject count as right or wrong. Texts have no such measure: here it is the F1 of their words
(lower case, without the most frequent English ones), 1 for two empty texts. Subjects are paired first: of all pairs the
one with the most similar fields, then the next one. A subject of the reference without a partner, and a row without a
caption, count as 0 in all their fields; additional subjects do not count, nor options that the reference leaves empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from skyreels_v2_infer.captioner.schema import OPTIONS, SUBJECT_TEXTS, TEXTS, Caption, Subject

SUBJECT_FIELDS = (*SUBJECT_TEXTS, "type", "sub_type", "is_main")
FIELDS = (*OPTIONS, *TEXTS, *(f"subject {name}" for name in SUBJECT_FIELDS))
FREQUENT = frozenset("a an and are as at by for from her his in is it its of on or the their to with".split())  # noqa: SIM905


def words_of(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"\w+", text.lower()) if word not in FREQUENT)


def agreement(one: str, other: str) -> float:
    """F1 of the words of two texts, 0..1."""
    first, second = words_of(one), words_of(other)
    if not first and not second:
        return 1.0
    return 2 * (first & second).total() / (first.total() + second.total())


def same(one: str, other: str) -> float:
    return float(one.strip().lower() == other.strip().lower())


def of_subjects(reference: Subject, found: Subject | None) -> dict[str, float]:
    """The score of each of `SUBJECT_FIELDS`."""
    if found is None:
        return dict.fromkeys(SUBJECT_FIELDS, 0.0)
    scores = {name: agreement(getattr(reference, name), getattr(found, name)) for name in SUBJECT_TEXTS}
    scores |= {name: same(getattr(reference, name), getattr(found, name)) for name in ("type", "sub_type")}
    return scores | {"is_main": float(reference.is_main == found.is_main)}


def paired(reference: Sequence[Subject], found: Sequence[Subject]) -> list[Subject | None]:
    """The subject in `found` for each of the reference; None: there is none left."""
    ranked = [
        (-sum(of_subjects(one, other).values()), i, j)
        for i, one in enumerate(reference)
        for j, other in enumerate(found)
    ]
    partners: dict[int, int] = {}
    for _, i, j in sorted(ranked):
        if i not in partners and j not in partners.values():
            partners[i] = j
    return [found[partners[i]] if i in partners else None for i in range(len(reference))]


def of_captions(reference: Caption, found: Caption | None) -> dict[str, list[float]]:
    """Scores by field (`FIELDS`): one each, of subjects one for each of the reference; [] if it says nothing."""
    known = [name for name in (*OPTIONS, *TEXTS) if name in TEXTS or getattr(reference, name)]
    scores = {name: [0.0] for name in known}
    if found is not None:
        compare = {name: same if name in OPTIONS else agreement for name in known}
        scores = {name: [compare[name](getattr(reference, name), getattr(found, name))] for name in known}
    partners = paired(reference.subjects, () if found is None else found.subjects)
    own = [of_subjects(one, other) for one, other in zip(reference.subjects, partners, strict=True)]
    return scores | {f"subject {name}": [score[name] for score in own] for name in SUBJECT_FIELDS}


def accuracies(pairs: Sequence[tuple[Caption, Caption | None]]) -> dict[str, tuple[float | None, int]]:
    """(percent, number of comparisons) by field, and their ``mean``, over (reference, found) pairs.

    None: there is nothing to compare.
    """
    collected: dict[str, list[float]] = {name: [] for name in FIELDS}
    for reference, found in pairs:
        for name, scores in of_captions(reference, found).items():
            collected[name] += scores
    table = {name: (100 * sum(s) / len(s) if s else None, len(s)) for name, s in collected.items()}
    known = [percent for percent, _ in table.values() if percent is not None]
    return {"mean": (sum(known) / len(known) if known else None, len(pairs))} | table


def shown(table: dict[str, tuple[float | None, int]]) -> str:
    """A line for each field: its name, percent, number of comparisons."""
    lines = [f"{'field':<22}{'percent':>8}{'of':>8}"]
    for name, (percent, count) in table.items():
        lines.append(f"{name:<22}{'-' if percent is None else f'{percent:.1f}':>8}{count:>8}")
    return "\n".join(lines)
