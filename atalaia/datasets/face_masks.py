"""Draws a medical mask on a face, by its box and its five points: photos of masked people are hard to get."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FINE = 4  # times as many pixels while the outline is drawn, for smooth edges
COLOURS = (  # light blue twice: most are
    (165, 205, 225),
    (150, 195, 210),
    (238, 240, 240),
    (28, 28, 32),
    (120, 125, 130),
    (45, 60, 110),
    (225, 170, 180),
    (150, 35, 45),
    (90, 140, 110),
)


def draw(photo: Image.Image, box: np.ndarray, points: np.ndarray, random: np.random.RandomState) -> None:
    """Draws a mask of random shape and colour over mouth and, mostly, nose, into the photo itself.

    Args:
      photo: RGB.
      box: float [4], x0, y0, x1, y1 of the face in pixels.
      points: float [5, 2], x, y of eyes, nose and corners of the mouth.
      random: what shape and colour are drawn by.
    """
    outline, straps = _outline(box, points, random)
    x0, y0 = np.floor(outline.min(0)).astype(int) - 2
    x1, y1 = np.ceil(outline.max(0)).astype(int) + 3
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, photo.width), min(y1, photo.height)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return
    corner, size = np.array([x0, y0]), (x1 - x0, y1 - y0)
    shape = Image.new("L", (size[0] * FINE, size[1] * FINE))
    brush = ImageDraw.Draw(shape)
    brush.polygon([tuple(point) for point in (outline - corner) * FINE], fill=255)
    shape = shape.filter(ImageFilter.GaussianBlur(FINE)).resize(size, Image.Resampling.BOX)
    skin = photo.crop((x0, y0, x1, y1))
    photo.paste(Image.fromarray(_cloth(skin, random)), (x0, y0), shape)
    if random.rand() < 0.6:
        width = max(1, round((box[2] - box[0]) / 50))
        pen, colour = ImageDraw.Draw(photo), tuple(int(v) for v in random.choice([30, 150, 225]) + np.zeros(3))
        for line in straps:
            pen.line([tuple(point) for point in line], fill=colour, width=width)


def _outline(box, points, random):
    """The mask's corners [n, 2] in pixels, and two lines [2, 2] to the ears."""
    left_eye, right_eye, nose, *mouth = np.asarray(points, float)
    eyes, mouth = (left_eye + right_eye) / 2, np.mean(mouth, 0)
    across = right_eye - left_eye
    across = across / max(np.hypot(*across), 1e-6)
    if abs(across[1]) > 0.6 or across[0] <= 0:  # lying on its side, or points that cannot be
        across = np.array([1.0, 0.0])
    down = np.array([-across[1], across[0]])
    to_mouth = max((mouth - eyes) @ down, 0.2 * (box[3] - box[1]))
    at_nose, at_mouth = (nose - eyes) @ across, (mouth - eyes) @ across
    left, right, chin = box[0] - eyes[0], box[2] - eyes[0], box[3] - eyes[1]
    top = to_mouth * (random.uniform(0.25, 0.62) if random.rand() < 0.93 else random.uniform(0.75, 0.9))
    side = max(top, to_mouth * random.uniform(0.35, 0.7))
    side_end = side + random.uniform(0.3, 0.6) * (chin - side)
    end = chin * random.uniform(0.94, 1.08)
    narrow = random.uniform(0.35, 0.65)
    corners = np.array(
        [
            (left * random.uniform(0.8, 1.0), side),
            (at_nose + left * 0.35, (top + side) / 2),
            (at_nose, top),
            (at_nose + right * 0.35, (top + side) / 2),
            (right * random.uniform(0.8, 1.0), side),
            (right * random.uniform(0.78, 0.95), side_end),
            (at_mouth + right * narrow, end * 0.96),
            (at_mouth, end),
            (at_mouth + left * narrow, end * 0.96),
            (left * random.uniform(0.78, 0.95), side_end),
        ]
    )
    corners += random.normal(0, 0.015 * (box[2] - box[0]), corners.shape)
    outline = eyes + corners[:, :1] * across + corners[:, 1:] * down
    ears = [eyes + a * across + 0.3 * to_mouth * down for a in (left, right)]
    return outline, [np.stack([outline[0], ears[0]]), np.stack([outline[4], ears[1]])]


def _cloth(skin, random):
    """Cloth as large as `skin`, uint8 [height, width, 3], lit as that is."""
    width, height = skin.size
    colour = np.array(COLOURS[random.randint(len(COLOURS))]) + random.normal(0, 10, 3)
    cloth = np.tile(colour, (height, width, 1))
    kind, rows = random.rand(), np.linspace(0, 1, height)[:, None, None]
    if kind < 0.45:  # pleats
        cloth *= 1 - 0.12 * (np.sin(rows * np.pi * 2 * random.uniform(2, 4)) > 0.75)
    elif kind < 0.6:  # a pattern
        other = np.array(COLOURS[random.randint(len(COLOURS))])
        columns, step = np.arange(width)[None, :, None], max(2, width // random.randint(4, 12))
        stripes = (
            (columns // step) % 2
            if random.rand() < 0.5
            else (columns // step + np.arange(height)[:, None, None] // step) % 2
        )
        cloth = np.where(stripes == 1, other, cloth)
    light = np.asarray(skin.convert("L").filter(ImageFilter.GaussianBlur(float(max(1, width / 12)))), float)[..., None]
    light = light / max(light.mean(), 1)
    strength = random.uniform(0.3, 0.9)
    dim = min(1.0, np.asarray(skin.convert("L")).mean() / 110) * random.uniform(0.8, 1.1)  # dark photos, dark masks
    shaded = cloth * (1 + strength * (light - 1)) * dim * (1 - 0.15 * rows * random.rand())
    return np.clip(shaded, 0, 255).astype(np.uint8)
