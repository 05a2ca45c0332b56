"""Say which images stay together (copies, near-duplicates, names alike), and choose among them."""

import hashlib
import re
from collections import Counter

from resnets.data.duplicates import join
from resnets.params.schema import Split
from resnets.system.errors import DataError, ParamsError
from resnets.tasks.manifest import ManifestRow

GroupKey = tuple[str, ...]  # a group: the hash that orders it, its word


def group_words(rows: list[ManifestRow], options: Split) -> list[str]:
    """Return a word per row; rows with one word stay together."""
    own = [row.near if options.group_near else row.group for row in rows]
    # the space lets a name sort before a hash, so that it names the group
    pairs = [
        (word, row.given_group and f" group {row.given_group}")
        for word, row in zip(own, rows, strict=True)
    ]
    if options.group_regex is not None:
        pairs += zip(own, _matches(rows, options.group_regex), strict=True)
    joined = join((word, name or word) for word, name in pairs)
    return [joined[word] for word in own]


def _matches(rows: list[ManifestRow], pattern: str) -> list[str]:
    """Return what the pattern finds in the name of each row, "" where it finds nothing."""
    try:
        matches = [re.search(pattern, row.id) for row in rows]
    except re.error as error:
        raise ParamsError(
            f"split.*.group_regex: {pattern!r}: {error}",
            "correct the regular expression",
        ) from error
    if not any(matches):
        raise DataError(
            f"split.*.group_regex: {pattern!r} matches no name, such as {rows[0].id!r}",
            "correct it, or set it to null",
        )
    return [" " + "|".join(match.groups("") or (match[0],)) if match else "" for match in matches]


def group_key(*words: str) -> GroupKey:
    """Return what a group, the last of the words, is ordered by."""
    return hashlib.sha256("|".join(words).encode("utf-8", "surrogateescape")).hexdigest(), words[-1]


def choose_groups(
    pool: dict[GroupKey, Counter[str]], quota: Counter[str], *, reserve: int
) -> list[GroupKey]:
    """Choose groups, given as images per class, until each class has its quota.

    The smallest class chooses first, as few of its groups fit, and takes what exceeds no quota in
    the order of the keys. Then, from the smallest group, follows what brings the numbers nearer to
    the quotas or a class its first image. Of each class `reserve` groups are left to later sides.
    """
    num_images = Counter(label for labels in pool.values() for label in labels.elements())
    num_groups = Counter(label for labels in pool.values() for label in labels)
    by_class = sorted((num_images[label], label, key) for key in pool for label in pool[key])
    by_size = sorted(pool, key=lambda key: (pool[key].total(), key))
    missing, chosen = Counter(quota), dict[GroupKey, None]()
    turns = [(key, True) for _, _, key in by_class] + [(key, False) for key in by_size]
    for key, must_fit in turns:
        labels = pool[key]
        if key in chosen or any(num_groups[label] <= reserve for label in labels):
            continue
        if must_fit:
            is_good = all(missing[label] >= number for label, number in labels.items())
        else:
            gain = sum(abs(missing[x]) - abs(missing[x] - number) for x, number in labels.items())
            is_good = gain > 0 or any(missing[label] == quota[label] for label in labels)
        if is_good:
            chosen[key] = None
            missing.subtract(labels)
            num_groups.subtract(labels.keys())
    return list(chosen)
