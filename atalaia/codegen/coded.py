"""Sparse weights of few bits as codes: each is a gap and a weight, the most frequent ones together, in few bits.

A nonzero and its gap have about 5 bits of entropy where four of five ternary weights are zero. Codes of one width come
within a bit of that, and are read without a branch a bit, as those of Huffman or Rice would need.
"""

import math
from typing import NamedTuple

import numpy as np

WIDTHS = (3, 4, 5, 6, 7)  # bits of a code
LARGEST = 255  # gap of a code


class Codes(NamedTuple):
    """Sparse weights as conv_coded.c has them.

    width: bits of a code; stored: uint16, the table and the codes; counts: codes by output and kernel row.
    """

    width: int
    stored: np.ndarray
    counts: np.ndarray


def pack_codes(kernel: np.ndarray) -> Codes | None:
    """Weights that are not zero as codes of the width that takes the fewest bytes; None where they are too unlike.

    Args:
      kernel: int8 `[outputs, height, width, channels]`.
    """
    rows = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    row, place = np.nonzero(rows)
    if not len(row):
        return None
    same = np.r_[False, row[1:] == row[:-1]]
    gaps = place - np.where(same, np.r_[0, place[:-1]], 0)
    pairs, index = np.unique(np.stack([gaps, rows[row, place]], 1), axis=0, return_inverse=True)
    often = np.bincount(index.ravel())
    best: tuple[float, int, dict, list] = (math.inf, 0, {}, [])
    for width in WIDTHS:
        table = _table(pairs, often, 1 << width)
        words = [_spell(int(gap), int(weight), table) for gap, weight in pairs] if table else []
        size = (16 << width) + width * int(np.dot(list(map(len, words)), often)) if table else math.inf
        if size < best[0]:
            best = size, width, table, words
    _, width, table, words = best
    if not table:
        return None
    stream = [code for i in index.ravel().tolist() for code in words[i]]
    counts = np.bincount(row, [len(words[i]) for i in index.ravel()], len(rows)).astype(np.int64)
    return Codes(width, np.concatenate([_entries(table, width), _joined(stream, width)]), counts)


def _table(pairs, often, size):
    """What each code is, (gap, weight) to its number; {} where the weights are too many.

    In it are all weights at gap 0 and gaps of powers of two at weight 0, by which every pair can be spelled, and those
    pairs that are most frequent.
    """
    skips = 1 << np.arange(int(min(pairs[:, 0].max(), LARGEST)).bit_length())
    table = [(0, int(weight)) for weight in np.unique(pairs[:, 1])] + [(int(gap), 0) for gap in skips]
    if len(table) > size:
        return {}
    frequent = [tuple(pairs[i].tolist()) for i in np.argsort(-often, kind="stable") if pairs[i, 0] <= LARGEST]
    table += [pair for pair in frequent if pair[0]][: size - len(table)]
    return {pair: code for code, pair in enumerate(table)}


def _spell(gap, weight, table):
    """The fewest codes for a gap and a weight: skips, the largest first, then one with the weight."""
    skips = sorted((g for g, w in table if w == 0), reverse=True)

    def bridge(rest):
        found = []
        for skip in skips:
            found += [table[skip, 0]] * (rest // skip)
            rest %= skip
        return found

    ends = [g for g, w in table if w == weight and g <= gap]
    return min(([*bridge(gap - end), table[end, weight]] for end in ends), key=len)


def _entries(table, width):
    """uint16 `[2^width]`: the gap in the lower byte, the weight in the upper one."""
    entries = np.zeros(1 << width, np.uint16)
    for (gap, weight), code in table.items():
        entries[code] = gap | (weight & 255) << 8
    return entries


def _joined(codes, width):
    """uint16: codes of `width` bits, the first in the lowest."""
    bits = (np.asarray(codes)[:, None] >> np.arange(width) & 1).astype(np.uint8).ravel()
    bits = np.pad(bits, (0, -len(bits) % 16))
    return np.packbits(bits, bitorder="little").view("<u2").astype(np.uint16)
