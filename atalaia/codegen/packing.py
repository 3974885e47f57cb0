"""Weights as the kernels of convolutions have them."""

import math

import numpy as np

GAPS = {"PAIRS": 255, "TRIPLETS": 15, "NIBBLES": 15}  # forms of sparse weights, and the largest gap of each
BITS = (2, 3, 4)  # of packed weights, which are signed: [-2, 1], [-4, 3] and [-8, 7]


def fits(kernel: np.ndarray, bits: int) -> bool:
    """Whether all weights are in [-2^(bits - 1), 2^(bits - 1) - 1]."""
    return bool(-(1 << bits - 1) <= kernel.min(initial=0) and kernel.max(initial=0) < 1 << bits - 1)


def pack_dense(kernel: np.ndarray) -> np.ndarray:
    """uint8: groups of four outputs, in them rows, columns and channels, in them a weight + 128 of each output.

    Args:
      kernel: int8 `[outputs, height, width, channels]`, as in the other forms.
    """
    out, *rest = kernel.shape
    padded = np.zeros((-(-out // 4) * 4, *rest), np.int16)
    padded[:out] = kernel
    return (padded.reshape(-1, 4, *rest).transpose(0, 2, 3, 4, 1).ravel() + 128).astype(np.uint8)


def pack_woven(kernel: np.ndarray) -> np.ndarray:
    """uint32: groups of three outputs, in them rows, columns and channels, in them two words, as conv_woven.c has them.

    A last output that is alone in its group has one word a tap.
    """
    out, *rest = kernel.shape
    padded = np.zeros((-(-out // 3) * 3, *rest), np.int64)
    padded[:out] = kernel
    first, second, third = padded.reshape(-1, 3, *rest).swapaxes(0, 1)
    words = np.stack([first + (second << 21), third + (second << 10)], -1).reshape(len(first), -1)
    last = words[-1, :: 2 if out % 3 == 1 else 1]
    return (np.append(words[:-1].ravel(), last) & 0xFFFFFFFF).astype(np.uint32)


def pack_fields(kernel: np.ndarray, bits: int) -> np.ndarray:
    """Words of four taps of two outputs: uint32 for 4 bits, three uint8 for 3, uint16 for 2. A row starts a new word.

    A weight is stored with 2^(bits - 1) added; the first output's taps lie in the lower half, the first of them lowest.
    """
    out, height = kernel.shape[:2]
    run = math.prod(kernel.shape[2:])
    codes = np.zeros((-(-out // 2) * 2, height, -(-run // 4) * 4), np.uint32)
    codes[:out, :, :run] = kernel.reshape(out, height, run).astype(np.int64) + (1 << bits - 1)
    taps = codes.reshape(-1, 2, height, codes.shape[2] // 4, 4) << (bits * np.arange(4, dtype=np.uint32))
    first, second = taps.sum(-1).swapaxes(0, 1)
    words = (first | second << 4 * bits).ravel().astype("<u4")
    lowest = np.ascontiguousarray(words.view(np.uint8).reshape(-1, 4)[:, :bits]).ravel()
    return lowest.view({2: np.uint16, 3: np.uint8, 4: np.uint32}[bits])


def chunk_taps(kernel: np.ndarray) -> int:
    """Taps, a multiple of 4 up to a kernel row, whose products with uint8 sum to [-32768, 32767] in every output."""
    rows = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1).astype(np.int64)
    for parts in range(1, rows.shape[1] + 1):
        chunk = -(-rows.shape[1] // (4 * parts)) * 4
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % chunk))).reshape(len(rows), -1, chunk)
        if (
            chunk < 1 << 16
            and 255 * max(np.maximum(padded, 0).sum(2).max(), np.maximum(-padded, 0).sum(2).max()) < 1 << 15
        ):
            return chunk
    raise AssertionError("four weights of at most 4 bits always fit")


def pack_sparse(kernel: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, groups by output and kernel row) of the weights that are not zero; forms: mcu/kernels/conv_sparse.c."""
    rows = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    row, place = np.nonzero(rows)
    same = np.r_[False, row[1:] == row[:-1]]
    gap = place - np.where(same, np.r_[0, place[:-1]], 0)
    zeros = np.maximum(gap - 1, 0) // GAPS[form]  # stored, to bridge a gap
    weights, gaps = np.zeros(len(gap) + zeros.sum(), np.int64), np.full(len(gap) + zeros.sum(), GAPS[form])
    at = np.cumsum(zeros + 1) - 1
    weights[at], gaps[at] = rows[row, place], gap - zeros * GAPS[form]
    counts = np.bincount(np.repeat(row, zeros + 1), minlength=len(rows))
    if form == "TRIPLETS":  # a zero at the end of each row that is odd
        odd = np.cumsum(counts)[counts % 2 == 1]
        weights, gaps = (np.insert(x, odd, 0).reshape(-1, 2) for x in (weights, gaps))
        stored, counts = np.stack([gaps[:, 0] | gaps[:, 1] << 4, *(weights.T + 128)], 1), (counts + 1) // 2
    elif form == "NIBBLES":
        stored = weights + 8 << 4 | gaps
    else:
        stored = np.stack([gaps, weights + 128], 1)
    return stored.ravel().astype(np.uint8), counts
