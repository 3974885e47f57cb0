"""model.atl, the smallest download: a file from which alone a .tflite file is restored byte for byte.

python -m atalaia.pack --workdir=runs/table2                         # model.tflite to model.atl
python -m atalaia.pack --tflite=FILE --out=FILE.atl
python -m atalaia.pack --unpack=FILE.atl --out=FILE.tflite

Weights are coded value by value with an adaptive binary range coder (the carry-less form of Martin, 1979, with LZMA's
normalisation): is the weight zero, given how full its output's and its input's weights were so far; its sign; its
size, by a binary tree. So zeros cost what they tell. Scales of biases are computed again from the two scales they are
products of. All else goes through LZMA. Layout: b"ATL1", CRC-32 of all that follows, 8 bytes of BLAKE2b of the .tflite
file, the length of the LZMA stream (LEB128), that stream, the range coder's bytes.
"""

import hashlib
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ai_edge_litert import schema_py_generated as schema

from atalaia import cli, tflite
from atalaia.errors import UserError
from atalaia.files import write_whole

MAGIC, CRC, DIGEST = b"ATL1", 4, 8
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]
WEIGHTS, WORDS, PRODUCT = range(3)  # kinds of what is cut out of the file


class Piece(NamedTuple):
    """Bytes `start` to `end` of the file.

    kind: WEIGHTS, int8 of `rows` outputs; WORDS, 32-bit values, kept byte by byte of their significance; PRODUCT,
    float32 values that are the product of one at `source` and those of the piece number `rows`.
    """

    start: int
    end: int
    kind: int
    rows: int
    source: int = 0


def pack(data: bytes) -> bytes:
    """The .atl form of a .tflite file.

    Raises:
      UserError: the bytes are no whole .tflite file.
    """
    tflite.read(data)
    pieces = _pieces(data)
    encoder, words, numbers = _Encoder(), [], [len(data), len(pieces)]
    place, rest = 0, []
    for piece in pieces:
        rest.append(data[place : piece.start])
        numbers += [piece.start - place, piece.end - piece.start, piece.kind, piece.rows, piece.source]
        content, place = data[piece.start : piece.end], piece.end
        if piece.kind == WEIGHTS:
            _code_weights(encoder, np.frombuffer(content, np.int8).reshape(piece.rows, -1).copy())
        elif piece.kind == WORDS:
            words.append(np.frombuffer(content, np.uint8).reshape(-1, 4).T.tobytes())
    rest.append(data[place:])
    plain = b"".join([_leb128(numbers), *words, *rest])
    stream = lzma.compress(plain, lzma.FORMAT_RAW, filters=_LZMA)
    body = b"".join([_digest(data), _leb128([len(stream)]), stream, encoder.finish()])
    return MAGIC + zlib.crc32(body).to_bytes(CRC) + body


def unpack(packed: bytes) -> bytes:
    """The .tflite file that `pack` was given.

    Raises:
      UserError: the bytes are no whole .atl file, or not as they were written.
    """
    if packed[: len(MAGIC)] != MAGIC:
        raise UserError(f"it is no .atl file: it does not begin with {MAGIC.decode()}")
    crc, body = packed[len(MAGIC) : len(MAGIC) + CRC], packed[len(MAGIC) + CRC :]
    if zlib.crc32(body).to_bytes(CRC) != crc:
        raise UserError("it is truncated or altered (its checksum differs): download it again")
    try:
        data = _unpack(body[DIGEST:])
    # What does not fit together shows as any error of LZMA or of sizes.
    except Exception as error:
        raise UserError(f"it was not written by atalaia.pack ({type(error).__name__})") from None
    if _digest(data) != body[:DIGEST]:
        raise UserError("what it restores is not what was packed: pack the .tflite file again")
    return data


def _unpack(packed):
    (length,), packed = _read_leb128(packed, 1)
    plain = lzma.decompress(packed[:length], lzma.FORMAT_RAW, filters=_LZMA)
    decoder = _Decoder(packed[length:])
    (total, count), plain = _read_leb128(plain, 2)
    numbers, plain = _read_leb128(plain, 5 * count)
    pieces, place = [], 0
    for skip, size, kind, rows, source in zip(*[iter(numbers)] * 5, strict=True):
        place += skip + size
        pieces.append(Piece(place - size, place, kind, rows, source))
    if not place <= total <= len(plain) + sum(p.end - p.start for p in pieces):
        raise ValueError("sizes")
    data = bytearray(total)
    for piece in pieces:
        if piece.kind == WORDS:
            size = piece.end - piece.start
            data[piece.start : piece.end] = np.frombuffer(plain[:size], np.uint8).reshape(4, -1).T.tobytes()
            plain = plain[size:]
    place = 0
    for start, end in [*((p.start, p.end) for p in pieces), (total, total)]:
        data[place:start], plain = plain[: start - place], plain[start - place :]
        place = end
    for piece in pieces:
        if piece.kind == WEIGHTS:
            weights = np.zeros((piece.rows, (piece.end - piece.start) // piece.rows), np.int8)
            _code_weights(decoder, weights)
            data[piece.start : piece.end] = weights.tobytes()
    for piece in pieces:
        if piece.kind == PRODUCT:
            factors = pieces[piece.rows]
            data[piece.start : piece.end] = _product(data, piece.source, factors.start, factors.end)
    return bytes(data)


def _product(data, source, start, end):
    one = np.frombuffer(bytes(data[source : source + 4]), np.float32)
    return (one * np.frombuffer(bytes(data[start:end]), np.float32)).tobytes()


def _digest(data):
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def _pieces(data) -> list[Piece]:
    """What is cut out: weights, biases and scales of matrix products and convolutions, in the file's order."""
    found = {}
    for weights, scales, bias, bias_scales, source in _linear_places(data):
        for place, kind in ((weights, WEIGHTS), (bias, WORDS), (scales, WORDS)):
            rows = place[2] if place and kind == WEIGHTS else 0
            if place and place[1] - place[0] >= 4:
                found[place[0]] = Piece(place[0], place[1], kind, rows)
        if bias_scales and scales and source is not None:
            start, end = bias_scales[:2]
            if end - start == scales[1] - scales[0] and _product(data, source, *scales[:2]) == data[start:end]:
                found[start] = Piece(start, end, PRODUCT, scales[0], source)
    pieces, end = [], 0
    for piece in sorted(found.values()):  # pieces that overlap, of files that share buffers, stay where they are
        if piece.start >= end:
            pieces.append(piece)
            end = piece.end
    index = {piece.start: i for i, piece in enumerate(pieces)}
    return [p._replace(rows=index[p.rows]) if p.kind == PRODUCT else p for p in pieces if _known(p, index)]


def _known(piece, index):
    return piece.kind != PRODUCT or piece.rows in index


def _linear_places(data) -> Iterator[tuple]:
    """Places in the file of weights, their scales, bias, its scales, and the input's scale, of each linear operator."""
    base = np.frombuffer(data, np.uint8)
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)

    def place(array, rows=0):
        """(start, end, rows) of an array that is a view into the file."""
        if not isinstance(array, np.ndarray) or not array.size:
            return None
        start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return start, start + array.nbytes, rows

    def scales(tensor):
        found = tensor.Quantization()
        return None if found is None else place(found.ScaleAsNumpy())

    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    codes = {getattr(schema.BuiltinOperator, kind) for kind in kinds}
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        if max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) not in codes or operator.InputsLength() < 3:
            continue
        if min(operator.Inputs(k) for k in range(3)) < 0:  # such as a bias left out
            continue
        given, weights, bias = (graph.Tensors(operator.Inputs(k)) for k in range(3))
        if weights.Type() != schema.TensorType.INT8 or bias.Type() != schema.TensorType.INT32:
            continue
        source = scales(given)
        yield (
            place(model.Buffers(weights.Buffer()).DataAsNumpy(), weights.Shape(0)),
            scales(weights),
            place(model.Buffers(bias.Buffer()).DataAsNumpy()),
            scales(bias),
            source[0] if source and source[1] - source[0] == 4 else None,
        )


# The coder. Encoder and decoder share one description of the weights, `_code_weights`: `coder.bit(model, at, bit)`
# codes the bit with the model's context `at` and returns it; a decoder ignores the bit that it is given.

_TOP, _SHIFT, _ONE = 1 << 24, 16, 1 << 16
_RATES = [max(_ONE * 2 // (2 * n + 3), _ONE // 160) for n in range(255)]  # near 1 / (n + 1.5): a running mean


class _Bits:
    """Adaptive probabilities that a bit is 0, one a context."""

    def __init__(self, contexts: int):
        self.zero, self.count = [_ONE // 2] * contexts, [0] * contexts

    def learn(self, at: int, bit: int) -> None:
        """Moves a context's probability towards what was seen."""
        count = self.count[at]
        target = 64 if bit else _ONE - 64
        self.zero[at] += (target - self.zero[at]) * _RATES[count] >> _SHIFT
        if count < len(_RATES) - 1:
            self.count[at] = count + 1


class _Encoder:
    def __init__(self):
        self.low, self.range, self.bytes = 0, 0xFFFFFFFF, bytearray()

    def bit(self, model: _Bits, at: int, bit: int) -> int:
        bound = (self.range >> _SHIFT) * model.zero[at]
        if bit:
            self.low += bound
            self.range -= bound
        else:
            self.range = bound
        model.learn(at, bit)
        while self.range < _TOP:
            self._shift()
            self.range = self.range << 8 & 0xFFFFFFFF
        return bit

    def _shift(self):
        if self.low >= 1 << 32:  # a carry into what is already written
            i = len(self.bytes) - 1
            while self.bytes[i] == 0xFF:
                self.bytes[i] = 0
                i -= 1
            self.bytes[i] += 1
        self.bytes.append(self.low >> 24 & 0xFF)
        self.low = self.low << 8 & 0xFFFFFFFF

    def finish(self) -> bytes:
        """All bytes; zeros at the end are left out, since the decoder reads zeros there."""
        # Of all numbers that decode alike, the one with the most zeros at its end.
        for keep in (8, 16, 24, 32):
            mask = (1 << 32 - keep) - 1
            rounded = (self.low + mask) & ~mask
            if rounded < self.low + self.range:
                self.low = rounded
                break
        for _ in range(4):
            self._shift()
        return bytes(self.bytes).rstrip(b"\0")


class _Decoder:
    def __init__(self, data: bytes):
        self.data, self.place, self.range = data, 4, 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, model: _Bits, at: int, bit: int = 0) -> int:
        bound = (self.range >> _SHIFT) * model.zero[at]
        if self.code < bound:
            self.range, bit = bound, 0
        else:
            self.code -= bound
            self.range -= bound
            bit = 1
        model.learn(at, bit)
        while self.range < _TOP:
            byte = self.data[self.place] if self.place < len(self.data) else 0
            self.place += 1
            self.code = (self.code << 8 | byte) & 0xFFFFFFFF
            self.range = self.range << 8 & 0xFFFFFFFF
        return bit


def _code_weights(coder: _Encoder | _Decoder, weights: np.ndarray) -> None:
    """Codes int8 weights `[outputs, inputs]`, or fills them in."""
    empty, zero, sign, size = _Bits(2), _Bits(32 * 32), _Bits(1), _Bits(128)
    outputs, inputs = weights.shape
    used = [j for j in range(inputs) if coder.bit(empty, 0, int(weights[:, j].any()))]
    filled = [0] * inputs  # weights that are not zero so far, by input
    for seen in range(outputs):
        row = weights[seen].tolist()
        if not coder.bit(empty, 1, int(any(row))):
            continue
        in_row = 0
        for place, j in enumerate(used):
            value = row[j]
            # How rare they were so far, in powers of two, in this output and in this input.
            at = (2 * place + 4) // (2 * in_row + 1)
            by_input = (2 * seen + 4) // (2 * filled[j] + 1)
            if coder.bit(zero, at.bit_length() * 32 + by_input.bit_length(), int(value != 0)):
                filled[j] += 1
                in_row += 1
                negative = coder.bit(sign, 0, int(value < 0))
                magnitude, node = abs(value) - 1, 1
                for level in (6, 5, 4, 3, 2, 1, 0):
                    node = node * 2 + coder.bit(size, node, magnitude >> level & 1)
                row[j] = 127 - node if negative else node - 127
        weights[seen] = row


def _leb128(numbers):
    out = bytearray()
    for number in numbers:
        while number >= 128:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def _read_leb128(data, count):
    """(numbers, the bytes behind them)."""
    numbers, place = [], 0
    for _ in range(count):
        number = shift = 0
        while True:
            byte = data[place]
            place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        numbers.append(number)
    return numbers, data[place:]


def main() -> None:
    values = flags.FLAGS
    if values.unpack:
        if not values.out:
            raise UserError("give --out=FILE.tflite, where the restored file goes")
        source = Path(values.unpack)
        if not source.is_file():
            raise UserError(f"no file at {source}: check the path")
        try:
            data = unpack(source.read_bytes())
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        write_whole(cli.out_file(values.out), data)
        print(f"{values.out}: {len(data):,} bytes, from {source.stat().st_size:,}")
        return
    source = Path(values.tflite or cli.workdir() / "model.tflite")
    out = cli.out_file(values.out or source.with_suffix(".atl"))
    packed = pack(tflite.load(source))
    write_whole(out, packed)
    print(f"{out}: {len(packed):,} bytes, from {source.stat().st_size:,}")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("tflite", None, "A .tflite file instead of a run's.")
    flags.DEFINE_string("unpack", None, "A .atl file to restore the .tflite file from.")
    flags.DEFINE_string("out", None, "The file to write; by default beside the .tflite file.")
    cli.run(main)
