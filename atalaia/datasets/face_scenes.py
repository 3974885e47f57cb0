"""Makes pictures to learn faces from: photos, heads and persons on backgrounds, many sizes, masks on half of them."""

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from atalaia.datasets import face_masks
from atalaia.datasets.boxes import IGNORED
from atalaia.datasets.face_photos import Labelled

WEIGHTS = {"clutter": 0.35, "portraits": 0.5, "yearbook": 0.15, "masked": 1.2, "bare": 0.8}  # how often people of each
MASKED = 0.5  # part of the faces that get a mask
LEVELS = (110, 45)  # pixels of the largest face's width in two copies of each photo: the small one is for speed
WIDTHS = (8.0, 100.0)  # pixels of faces in pictures 160 wide
COVERED = 0.3  # part of a face that what comes in front of it may cover; a place with less is looked for
TRIES = 12  # places that are tried for it
WHOLE = 0.55  # part of the pictures that are a photo as it was taken, where there are such
PART = 0.6  # part of these that show only a part of it
SIDE = 512  # pixels of the longer side of these
FACELESS = 0.15  # part of the pictures without faces
HALF = 0.5  # the part of a face inside the picture from which on it must be found; with less it is ignored
GLIMPSE = 0.1  # and from which on it is there at all
ENLARGED = 1.3  # the most that a face is enlarged


class Person(NamedTuple):
    """A photo reduced to one of LEVELS, and its faces in its pixels."""

    photo: Image.Image  # RGB
    boxes: np.ndarray  # float [n, 4]
    points: np.ndarray  # float [n, 5, 2]
    masked: bool  # whether they wear masks already
    sure: np.ndarray | None = None  # bool [n]: no doubt that it is a face; None where all are


class Share(NamedTuple):
    """What pictures of one share are made of."""

    people: dict[str, list[tuple[Person, ...]]]  # by album, each at all LEVELS
    backgrounds: list[Image.Image]  # photos without faces
    tiles: np.ndarray  # uint8 [n, 32, 32, 3], of CIFAR-10
    wholes: Sequence[Person] = ()  # photos to be used as they were taken, with all their faces, or none


def share_of(photos: Sequence[Labelled], tiles: np.ndarray) -> Share:
    """Reads the photos of a share and reduces them."""
    people: dict[str, list[tuple[Person, ...]]] = {}
    backgrounds, wholes = [], []
    for labelled in photos:
        with Image.open(labelled.path) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
        if labelled.whole:
            wholes.append(_scaled(photo, labelled, min(1.0, SIDE / max(photo.size))))
            continue
        if not len(labelled.boxes):
            if labelled.album in ("flowers", "places"):
                backgrounds.append(photo)
            continue
        if labelled.album in ("flowers", "places"):
            continue
        backgrounds.extend(_faceless_parts(photo, labelled.boxes) if labelled.album == "clutter" else ())
        levels = tuple(_reduced(photo, labelled, level) for level in LEVELS)
        people.setdefault(labelled.album, []).append(levels)
    return Share(people, backgrounds, tiles, wholes)


def _reduced(photo, labelled, level):
    return _scaled(photo, labelled, min(1.0, level / (labelled.boxes[:, 2] - labelled.boxes[:, 0]).max()))


def _scaled(photo, labelled, scale):
    size = [max(1, round(side * scale)) for side in photo.size]
    ratio = np.array(size) / photo.size
    small = photo.resize(size, Image.Resampling.BILINEAR)
    boxes = labelled.boxes * np.tile(ratio, 2)
    return Person(small, boxes, labelled.points * ratio, labelled.masked, labelled.sure)


def _faceless_parts(photo, boxes):
    """What is left and right of all faces in a photo, where that is large enough."""
    margin = 0.4 * (boxes[:, 2] - boxes[:, 0]).max()
    for x0, x1 in ((0, boxes[:, 0].min() - margin), (boxes[:, 2].max() + margin, photo.width)):
        if x1 - x0 > 0.25 * photo.width:
            yield photo.crop((int(x0), 0, int(x1), photo.height))


class _Scene:
    """A picture in the making: pasted parts, and the faces with what covers them."""

    def __init__(self, canvas: Image.Image):
        self.canvas = canvas
        self.boxes: list[np.ndarray] = []

    def covered(self, rect) -> float:
        """The largest part of a face that a rectangle would cover."""
        parts = [0.0]
        for x0, y0, x1, y1 in self.boxes:
            width, height = min(x1, rect[2]) - max(x0, rect[0]), min(y1, rect[3]) - max(y0, rect[1])
            parts.append(max(width, 0) * max(height, 0) / ((x1 - x0) * (y1 - y0)))
        return max(parts)

    def paste(self, part: Image.Image, alpha: Image.Image | None, boxes: np.ndarray, corner) -> None:
        self.canvas.paste(part, corner, alpha)
        self.boxes += list(boxes + np.tile(corner, 2))


def make(share: Share, size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture.

    Args:
      share: what it is made of.
      size: height and width in pixels.
      seed: what it depends on besides.

    Returns:
      uint8 [height, width, 3]; boxes float32 [n, 4] of its faces, x0, y0, x1, y1 in pixels; and their classes, int32
      [n]: 0, or IGNORED for those of which less than half is in the picture.
    """
    random = np.random.RandomState(seed)
    if share.wholes and random.rand() < WHOLE:
        canvas, boxes, sure = _photographed(share, size, random)
    else:
        canvas, boxes = _composed(share, size, random)
        sure = np.ones(len(boxes), bool)
    picture = Image.new("RGB", (size[1], size[0]))
    picture.paste(_taken(canvas, random), (0, 0))
    inside = np.clip(boxes, 0, [*canvas.size] * 2)
    area, left = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, inside))
    classes = np.where((left >= HALF * area) & sure, 0, IGNORED).astype(np.int32)
    seen = left >= GLIMPSE * area
    return np.asarray(picture), inside[seen].astype(np.float32), classes[seen]


def _composed(share, size, random):
    """People and parts of photos on a background; the picture, RGB, and its faces' boxes."""
    height, width = size
    if random.rand() < 0.3:  # as a letterboxed photo: the rest stays black
        if random.rand() < 0.5:
            width = round(width * random.uniform(0.5, 1))
        else:
            height = round(height * random.uniform(0.5, 1))
    scene = _Scene(_background(share, (height, width), random))
    kind, unit = random.rand(), size[1] / 160
    if kind < FACELESS:
        for _ in range(random.randint(3)):
            _paste_body(scene, share, random, unit)
    elif kind < 0.4:  # a photo as it is
        _paste(scene, share, random, unit * _log_uniform(random, 20, WIDTHS[1]), whole=True)
    else:  # several people, sizes alike
        typical = _log_uniform(random, WIDTHS[0], 44)
        widths = sorted(typical * np.exp(random.normal(0, 0.3, random.randint(1, 12))))
        for face in widths:  # the near ones in front
            if random.rand() < 0.1:
                _paste_body(scene, share, random, unit)
            _paste(scene, share, random, unit * np.clip(face, *WIDTHS), whole=random.rand() < 0.3)
    return scene.canvas, np.array(scene.boxes).reshape(-1, 4)


def _photographed(share, size, random):
    """A photo as it was taken, or a part of it; the picture, RGB, its faces' boxes, and whether each is sure."""
    faceless = random.rand() < FACELESS
    some = [p for p in share.wholes if faceless == (not len(p.boxes))] or share.wholes
    person = some[random.randint(len(some))]
    photo, boxes, unit = person.photo.copy(), person.boxes, size[1] / 160
    for box, points in zip(boxes, person.points, strict=True):
        if random.rand() < MASKED and not person.masked:
            face_masks.draw(photo, box, points, random)
    scale = fit = min(size[1] / photo.width, size[0] / photo.height)
    middle = np.array(photo.size) * random.uniform(0.2, 0.8, 2)
    if random.rand() < PART:
        scale = fit * _log_uniform(random, 1, 3)
        if len(boxes):  # so that a face has a size that is drawn
            box = boxes[random.randint(len(boxes))]
            scale = unit * _log_uniform(random, *WIDTHS) / (box[2] - box[0])
            middle = (box[:2] + box[2:]) / 2 + random.uniform(-0.4, 0.4, 2) * np.array(size[::-1]) / scale
        scale = float(np.clip(scale, fit, max(fit, ENLARGED)))
    window = np.minimum(np.array(size[::-1]) / scale, photo.size)
    corner = np.clip(middle - window / 2, 0, photo.size - window)
    shown = np.clip(np.round(window * scale), 1, size[::-1]).astype(int)
    photo = photo.resize(tuple(shown), Image.Resampling.BILINEAR, box=(*corner, *(corner + window)))
    boxes = (boxes - np.tile(corner, 2)) * np.tile(shown / window, 2)
    if random.rand() < 0.5:
        photo = ImageOps.mirror(photo)
        boxes = _mirrored(boxes, shown[0])
    sure = np.ones(len(boxes), bool) if person.sure is None else person.sure
    return _tinted(photo, random), boxes.reshape(-1, 4), sure


def _mirrored(boxes, width):
    """Boxes `[n, 4]` in a picture of that width, left and right exchanged."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def _log_uniform(random, low, high):
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


# --- What is behind ---


def _background(share, size, random):
    """A photo without faces, CIFAR-10's pictures side by side, or a plain or shaded colour."""
    height, width = size
    kind = random.rand()
    if kind < 0.5:
        photo = share.backgrounds[random.randint(len(share.backgrounds))]
        return _window(photo, width, height, random)
    if kind < 0.9:
        canvas, side = Image.new("RGB", (width, height)), int(_log_uniform(random, 32, 180))
        for x in range(-random.randint(side), width, side):
            for y in range(-random.randint(side), height, side):
                tile = Image.fromarray(share.tiles[random.randint(len(share.tiles))])
                canvas.paste(tile.resize((side, side), Image.Resampling.BICUBIC), (x, y))
        return canvas
    ends = random.randint(0, 256, (2, 3)) if random.rand() < 0.7 else np.zeros((2, 3))
    ramp = np.linspace(ends[0], ends[1], height)[:, None].repeat(width, 1)
    return Image.fromarray((ramp + random.normal(0, 4, ramp.shape)).clip(0, 255).astype(np.uint8))


def _window(photo, width, height, random):
    """A random part of a photo, as large as is asked for."""
    least = max(width / photo.width, height / photo.height)
    scale = least * _log_uniform(random, 1, 2.5)
    w, h = width / scale, height / scale
    x, y = random.uniform(0, photo.width - w), random.uniform(0, photo.height - h)
    window = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    return ImageOps.mirror(window) if random.rand() < 0.5 else window


# --- Who is in front ---


def _person(share, random):
    """A random person, of each album as often as WEIGHTS says."""
    albums = [album for album in WEIGHTS if share.people.get(album)]
    chances = np.array([WEIGHTS[album] for album in albums])
    album = albums[random.choice(len(albums), p=chances / chances.sum())]
    return share.people[album][random.randint(len(share.people[album]))]


def _paste(scene, share, random, face, whole):
    """Pastes a photo (`whole`), or one person's head or upper body, whose first face is `face` pixels wide."""
    large, small = _person(share, random)
    person = small if face <= LEVELS[1] / 1.5 else large
    photo, boxes = person.photo.copy(), person.boxes
    for box, points in zip(boxes, person.points, strict=True):
        if random.rand() < MASKED and not person.masked:
            face_masks.draw(photo, box, points, random)
    alpha = None
    if not whole and len(boxes) == 1:  # others' faces could be in the part, and nobody would know
        photo, boxes, alpha = _cut(photo, boxes, random)
    scale = min(face / (boxes[0, 2] - boxes[0, 0]), ENLARGED)
    size = tuple(max(2, round(side * scale)) for side in photo.size)
    ratio = np.tile(np.array(size) / photo.size, 2)
    photo, boxes = _tinted(photo.resize(size, Image.Resampling.BILINEAR), random), boxes * ratio
    alpha = alpha and alpha.resize(size, Image.Resampling.BILINEAR)
    if random.rand() < 0.5:
        photo, alpha = ImageOps.mirror(photo), alpha and ImageOps.mirror(alpha)
        boxes = _mirrored(boxes, size[0])
    _put(scene, photo, alpha, boxes, random)


def _put(scene, part, alpha, boxes, random):
    """Pastes a part where it covers no face by much; nowhere if there is no such place."""
    width, height = scene.canvas.size
    x0, y0, x1, y1 = boxes[0] if len(boxes) else (0, 0, *part.size)
    for _ in range(TRIES):
        x = round(random.uniform(0, max(width, 1)) - (x0 + x1) / 2)
        y = round(random.uniform(0, max(height, 1)) - (y0 + y1) / 2)
        if scene.covered((x, y, x + part.width, y + part.height)) <= COVERED:
            return scene.paste(part, alpha, boxes, (x, y))
    return None


def _cut(photo, boxes, random):
    """One face of a photo with some of what is around it, turned a little, and where it covers what is behind.

    Returns:
      The part, its box [1, 4], and alpha: None for a rectangle, or a head, or a head with shoulders.
    """
    x0, y0, x1, y1 = boxes[random.randint(len(boxes))].tolist()
    width, height = x1 - x0, y1 - y0
    up, side, down = random.uniform([0.25, 0.3, 0.1], [0.6, 1.0, 1.4])
    low = np.maximum([x0 - side * width, y0 - up * height], 0).astype(int)
    high = np.minimum([x1 + side * width, y1 + down * height], photo.size).astype(int)
    room = round(0.4 * max(width, height))  # around the part, for the turn
    origin = np.maximum(low - room, 0)
    photo = photo.crop((*origin, *np.minimum(high + room, photo.size)))
    box, window = np.array([x0, y0, x1, y1]) - np.tile(origin, 2), (*(low - origin), *(high - origin))
    middle, chin = (box[:2] + box[2:]) / 2, box[3]
    kind = random.rand()
    shape = None
    if kind > 0.35:
        shape = Image.new("L", photo.size)
        brush = ImageDraw.Draw(shape)
        a, b = (0.62 + 0.2 * random.rand()) * width, (0.66 + 0.15 * random.rand()) * height
        brush.ellipse((middle[0] - a, middle[1] - 1.1 * b, middle[0] + a, middle[1] + b), fill=255)
        if kind > 0.55:
            shoulders, neck = random.uniform(1.0, 1.6) * width, 0.45 * width
            right = [(neck, chin - 0.2 * height), (neck, chin + 0.1 * height), (shoulders, chin + 0.35 * height)]
            right.append((shoulders, chin + 3 * height))
            left = [(-x, y) for x, y in reversed(right)]
            brush.polygon([(middle[0] + x, y) for x, y in right + left], fill=255)
        shape = shape.filter(ImageFilter.GaussianBlur(width * random.uniform(0.01, 0.05)))
    angle = random.uniform(-20, 20) if random.rand() < 0.5 else 0
    if angle:
        shape = shape or Image.new("L", photo.size, 255)  # what the turn brings in from outside the photo is not there
        photo, shape = (i.rotate(angle, Image.Resampling.BILINEAR, center=tuple(middle)) for i in (photo, shape))
        c, s = np.cos(np.radians(angle)) / 2, np.sin(np.radians(angle)) / 2
        half = np.array([np.hypot(width * c, height * s), np.hypot(width * s, height * c)])  # of the turned ellipse
        box = np.concatenate([middle - half, middle + half])
    part, alpha = photo.crop(window), shape and shape.crop(window)
    return part, (box - np.tile(window[:2], 2))[None], alpha


def _paste_body(scene, share, random, unit):
    """Pastes what is below a person's chin, which is no face."""
    _, person = _person(share, random)
    top = int(person.boxes[:, 3].max() + 0.15 * (person.boxes[:, 3] - person.boxes[:, 1]).max())
    if person.photo.height - top < 12:
        return
    body = person.photo.crop((0, top, *person.photo.size))
    scale = unit * _log_uniform(random, 20, 140) / body.width
    size = tuple(max(2, round(side * scale)) for side in body.size)
    _put(scene, _tinted(body.resize(size, Image.Resampling.BILINEAR), random), None, np.zeros((0, 4)), random)


# --- How it was photographed ---


def _tinted(photo, random):
    """Other light and, a little, other colours."""
    pixels = np.asarray(photo, np.float32) / 255
    pixels = pixels ** np.exp(random.normal(0, 0.25)) * np.exp(random.normal(0, 0.08, 3)).astype(np.float32)
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


def _taken(picture, random):
    """Contrast, sharpness, noise and JPEG's traces of some camera."""
    if random.rand() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0)))
    pixels = np.asarray(picture, np.float32)
    pixels = (pixels - 128) * random.uniform(0.7, 1.2) + 128 + random.uniform(-20, 20)
    if random.rand() < 0.3:
        pixels = pixels + random.normal(0, random.uniform(1, 8), pixels.shape)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if random.rand() < 0.5:
        file = BytesIO()
        picture.save(file, "JPEG", quality=int(random.randint(40, 96)))
        picture = Image.open(file).convert("RGB")
    return picture
