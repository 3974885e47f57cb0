"""Pictures with boxes: COCO, YOLO and VOC as people have them, the same answer from each, and their mistakes."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from atalaia import config as configs
from atalaia import data
from atalaia.datasets import boxes, pictures
from atalaia.errors import UserError

CAT, DOG = (10.0, 5.0, 30.0, 25.0), (40.0, 0.0, 80.0, 40.0)  # in pictures of 80x40
CONTENT = {"a.png": [("cat", CAT), ("dog", DOG)], "b.png": [("cat", DOG)], "c.png": []}


class _Folder(parameterized.TestCase):
    def setUp(self):
        self.root = Path(self.enter_context(tempfile.TemporaryDirectory())) / "mine"

    def _picture(self, name, size=(80, 40)):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 100, 50)).save(path)

    def _write(self, name, text):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def _coco(self, folder="", content=CONTENT, **changes):
        """Writes pictures and annotations.json; `changes` are put into its first annotation."""
        images, annotations, ids = [], [], {"cat": 7, "dog": 3}
        for i, (name, found) in enumerate(content.items()):
            self._picture(Path(folder) / name)
            images.append(dict(id=i, file_name=name, width=80, height=40))
            for label, (x0, y0, x1, y1) in found:
                annotations.append(dict(image_id=i, category_id=ids[label], bbox=[x0, y0, x1 - x0, y1 - y0]))
        annotations[0].update(changes)
        categories = [dict(id=number, name=name) for name, number in ids.items()]
        content = dict(images=images, annotations=annotations, categories=categories)
        self._write(Path(folder) / "annotations.json", json.dumps(content))
        return content

    def _yolo(self, folder=""):
        for name, found in CONTENT.items():
            self._picture(Path(folder) / name)
            lines = [
                f"{('cat', 'dog').index(n)} {(x0 + x1) / 160} {(y0 + y1) / 80} {(x1 - x0) / 80} {(y1 - y0) / 40}"
                for n, (x0, y0, x1, y1) in found
            ]
            if lines:
                self._write(Path(folder) / Path(name).with_suffix(".txt"), "\n".join(lines) + "\n")
        self._write("classes.txt", "cat\ndog\n")

    def _voc(self, folder=""):
        for name, found in CONTENT.items():
            self._picture(Path(folder) / name)
            objects = "".join(
                f"<object><name>{n}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                "</bndbox></object>\n"
                for n, (x0, y0, x1, y1) in found
            )
            size = "<size><width>80</width><height>40</height></size>"
            text = f"<annotation>\n{size}\n{objects}</annotation>"
            self._write(Path(folder) / Path(name).with_suffix(".xml"), text)

    def _whole(self, **fields):
        """All pictures as one split, and what was said."""
        return self._quietly(boxes.whole, **fields)

    def _load(self, **fields):
        return self._quietly(lambda config: data.load(config, self.root), **fields)

    def _quietly(self, function, **fields):
        config = configs.base().data
        given = dict(name="boxes", path=str(self.root), size="40,80", validation=0.0)
        config.update(given | fields)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            found = function(config)
        return found, [line for line in stderr.getvalue().splitlines() if not line.startswith("read ")]

    def _refuses(self, pattern, **fields):
        with self.assertRaisesRegex(UserError, pattern) as raised:
            self._whole(**fields)
        self.assertNotIn("\n", str(raised.exception))


class FormatsTest(_Folder):
    @parameterized.parameters("_coco", "_yolo", "_voc")
    def test_each_format_says_the_same(self, write):
        getattr(self, write)()
        split, said = self._whole()
        self.assertEqual(split.images.shape, (3, 40, 80, 3))
        np.testing.assert_allclose(split.targets["boxes"], [[CAT, DOG], [DOG, [0] * 4], [[0] * 4] * 2], atol=1e-4)
        self.assertEqual(split.targets["classes"].tolist(), [[0, 1], [0, -1], [-1, -1]])
        self.assertEqual(split.targets["boxes"].dtype, np.float32)
        self.assertEqual(said, [])

    @parameterized.parameters("_coco", "_yolo", "_voc")
    def test_train_and_test(self, write):
        for part in ("train", "test"):
            getattr(self, write)(part)
        loaded, said = self._load()
        self.assertEqual((len(loaded.train.images), len(loaded.test.images)), (3, 3))
        self.assertEqual((loaded.names, said), (("cat", "dog"), []))

    def test_all_splits_have_room_for_the_same_number_of_boxes(self):
        self._coco("train")
        self._coco("test", {"a.png": [("cat", CAT)] * 5})
        loaded, _ = self._load()
        self.assertEqual(loaded.train.targets["boxes"].shape, (3, 5, 4))
        self.assertEqual(loaded.test.targets["classes"].tolist(), [[0] * 5])

    def test_without_train_a_test_set_is_carved_and_said(self):
        self._yolo()
        loaded, said = self._load()
        self.assertEqual((len(loaded.train.images), len(loaded.test.images)), (2, 1))
        self.assertEqual(said, [f"{self.root} has no train/ and test/: 20% of the images are the test set"])

    def test_yolo_with_images_and_labels_apart(self):
        self._yolo("images/train")
        (self.root / "labels/train").mkdir(parents=True)
        for file in (self.root / "images/train").glob("*.txt"):
            file.rename(self.root / "labels/train" / file.name)
        (self.root / "classes.txt").unlink()
        self._write("data.yaml", "train: x\nnames:\n  0: cat\n  1: dog\n")
        loaded, said = self._load(classes="dog")
        self.assertEqual((loaded.names, len(loaded.train.images) + len(loaded.test.images)), (("dog",), 3))
        self.assertIn("no test/", " ".join(said))

    def test_coco_as_roboflow_writes_it(self):
        self._coco()
        (self.root / "annotations.json").rename(self.root / "_annotations.coco.json")
        self.assertLen(self._whole()[0].images, 3)

    def test_crowds_and_difficult_boxes_are_ignored(self):
        self._coco(iscrowd=1)
        self.assertEqual(self._whole()[0].targets["classes"][0].tolist(), [-2, 1])
        (self.root / "annotations.json").unlink()
        self._voc()
        file = self.root / "a.xml"
        file.write_text(file.read_text().replace("<name>cat</name>", "<name>cat</name><difficult>1</difficult>"))
        self.assertEqual(self._whole()[0].targets["classes"][0].tolist(), [-2, 1])

    def test_pictures_without_word_are_left_out_and_said(self):
        self._coco()
        self._picture("more.png")
        split, said = self._whole()
        self.assertLen(split.images, 3)
        self.assertEqual(said, [f"{self.root}: 1 image(s) left out: 1 not in annotations.json"])

    def test_a_turned_picture(self):
        self._yolo()
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter: 40x80 as it is stored is 80x40 as it is seen
        Image.new("RGB", (40, 80)).save(self.root / "a.jpg", exif=exif)
        (self.root / "a.png").unlink()
        split, _ = self._whole()
        np.testing.assert_allclose(split.targets["boxes"][0], [CAT, DOG], atol=1e-4)


class ClassesTest(_Folder):
    def test_selected_and_merged(self):
        self._coco()
        split, said = self._whole(classes="animal=dog,cat")
        self.assertEqual(split.targets["classes"].tolist(), [[0, 0], [0, -1], [-1, -1]])
        self.assertEqual(said, [])
        split, said = self._whole(classes="dog")
        self.assertEqual(split.targets["classes"].tolist(), [[0], [-1], [-1]])
        self.assertEqual(said, [f"{self.root}: boxes of classes that are not asked for are left out: 2 of cat"])

    def test_rules(self):
        self.assertEqual(boxes.parse_classes("a; b=c, d"), {"a": ["a"], "b": ["c", "d"]})
        self.assertEqual(boxes.parse_classes(""), {})

    @parameterized.parameters(
        ("cow", "there is no class cow, only cat, dog"),
        ("cat; x=cat", "'cat' is given twice"),
        ("cat; cat=dog", "'cat' is given twice"),
        ("x=", "write it as"),
        ("=cat", "write it as"),
    )
    def test_mistakes(self, classes, pattern):
        self._coco()
        self._refuses(pattern, classes=classes)

    def test_of_a_data_set_without_boxes(self):
        config = configs.base().data
        config.classes = "face"
        with self.assertRaisesRegex(UserError, "data.classes: digits has no classes of boxes"):
            data.validate(config)


class MistakesTest(_Folder):
    @parameterized.parameters(
        (dict(bbox=[-2, 5, 20, 20]), [0, 5, 18, 25]),
        (dict(bbox=[70, 30, 14, 12]), [70, 30, 80, 40]),
    )
    def test_slightly_outside_is_clipped_and_said(self, changes, clipped):
        self._coco(**changes)
        split, said = self._whole()
        np.testing.assert_allclose(split.targets["boxes"][0, 0], clipped)
        self.assertEqual(said, [f"{self.root}: 1 box(es) reach outside their picture and are clipped"])

    @parameterized.parameters(
        (dict(bbox=[80, 5, 20, 20]), r"annotations\[0\]: the box \(80, 5, 100, 25\) is outside the picture of 80x40"),
        (dict(bbox=[70, 5, 21, 20]), r"annotations\[0\]: more than half of the box \(70, 5, 91, 25\) is outside"),
        (dict(bbox=[10, 5, 0, 20]), r"annotations\[0\]: the box has width 0 and height 20: above 0 is needed"),
        (dict(bbox=[10, 5, 20, -3]), r"annotations\[0\]: the box has width 20 and height -3"),
        (dict(bbox=[10, 5, float("nan"), 20]), r"annotations\[0\]: the box has NaN or infinity"),
        (dict(bbox=[10, 5, 20]), r"annotations\[0\]: bbox \[10, 5, 20\] is not four numbers"),
        (dict(bbox="x"), r"annotations\[0\]: bbox x is not four numbers"),
        (dict(category_id=99), r"annotations\[0\]: unknown class: category_id 99"),
        (dict(image_id=99), r"annotations\[0\]: image_id 99 is none of images"),
        (dict(image_id=[1]), r"annotations\[0\]: image_id \[1\] is no number"),
    )
    def test_coco_boxes(self, changes, pattern):
        self._coco(**changes)
        self._refuses(f"1 wrong label.s.: .*annotations.json: {pattern}")

    def test_coco_files(self):
        content = self._coco()
        file = self.root / "annotations.json"
        file.write_text('{"images": [],\n "annotations": [}')
        self._refuses("annotations.json: line 2: broken JSON")
        file.write_text("[1]")
        self._refuses("annotations.json is not COCO's JSON")
        named = content["images"][0] | dict(file_name=7)
        file.write_text(json.dumps(content | dict(images=[named, *content["images"][1:]])))
        self._refuses(r"images\[0\]: file_name 7 is no text")
        del content["annotations"][0]["bbox"]
        file.write_text(json.dumps(content))
        self._refuses(r"annotations\[0\]: lacks bbox")
        (self.root / "b.png").unlink()
        self._refuses(r"annotations.json: images\[1\]: there is no picture .*b.png")
        self._picture("b.png", (40, 80))
        self._refuses(r"images\[1\]: speaks of a picture of 80x40, but it is 40x80")

    def test_unreadable_picture(self):
        self._coco()
        (self.root / "b.png").write_bytes(b"no picture")
        self._refuses("b.png: the picture cannot be read")

    @parameterized.parameters(
        ("0 0.5 0.5 0.1", "line 2: '0 0.5 0.5 0.1' is not a class and four numbers"),
        ("0 a 0.5 0.1 0.1", "line 2: .* is not a class and four numbers"),
        ("2 0.5 0.5 0.1 0.1", r"line 2: unknown class 2: there are 0..1 \(cat, dog\)"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: unknown class 0.5"),
        ("0 40 20 10 10", r"line 2: the box \(2800, .* is outside the picture"),
        ("0 nan 0.5 0.1 0.1", "line 2: the box has NaN or infinity"),
        ("0 0.5 0.5 0 0.1", "line 2: the box has width 0"),
    )
    def test_yolo_lines(self, line, pattern):
        self._yolo()
        file = self.root / "b.txt"
        file.write_text(file.read_text() + line + "\n")
        self._refuses(f"b.txt: {pattern}")

    def test_yolo_files(self):
        self._yolo()
        self._write("d.txt", "0 0.5 0.5 0.1 0.1\n")
        self._write("README.txt", "Thank you for reading\n")
        self._refuses("1 wrong label.*d.txt: there is no picture of this name")
        (self.root / "d.txt").unlink()
        (self.root / "classes.txt").write_text("\n")
        self._refuses("classes.txt holds no names")
        (self.root / "classes.txt").write_bytes("maçã\n".encode("cp1252"))
        self._refuses("classes.txt is no text in UTF-8")
        (self.root / "classes.txt").unlink()
        self._refuses("no names of classes: add classes.txt")
        self._write("data.yaml", "names: [cat\n")
        self._refuses("data.yaml: line 2: broken YAML")
        self._write("data.yaml", "names: {0: cat, 2: dog}\n")
        self._refuses("numbered from 0 without gaps")

    @parameterized.parameters(
        ("</annotation>", "", "b.xml: line 4: broken XML"),
        ("<xmax>80.0</xmax>", "", r"b.xml: object 1 \(cat\): lacks numbers xmin"),
        ("<xmax>80.0</xmax>", "<xmax>nan</xmax>", r"b.xml: object 1 \(cat\): the box has NaN"),
        ("<xmax>80.0</xmax>", "<xmax>20</xmax>", r"b.xml: object 1 \(cat\): the box has width -20"),
        ("<name>cat</name>", "", "b.xml: object 1: lacks a name"),
        ("<width>80", "<width>90", "b.xml: speaks of a picture of 90x40, but it is 80x40"),
    )
    def test_voc(self, old, new, pattern):
        self._voc()
        file = self.root / "b.xml"
        file.write_text(file.read_text().replace(old, new))
        self._refuses(pattern)

    def test_many_mistakes_are_counted(self):
        self._yolo()
        (self.root / "b.txt").write_text("9 0 0 1 1\n" * 8)
        self._refuses("8 wrong label.*line 1: .*line 3: .*; and 5 more: mend or remove")

    def test_two_formats_and_none(self):
        self._coco()
        self._write("a.txt", "0 0.5 0.5 0.1 0.1\n")
        self._refuses("boxes in several files or formats .a.txt, annotations.json.: keep one")
        (self.root / "a.txt").unlink()
        (self.root / "annotations.json").rename(self.root / "instances_a.json")
        (self.root / "instances_b.json").write_text("{}")
        self._refuses("in several files or formats .instances_a.json, instances_b.json.")
        for file in self.root.glob("*.json"):
            file.unlink()
        self._refuses("3 images but no boxes: add COCO's")

    def test_folders(self):
        self._refuses("mine is not a folder")
        self._coco("test")
        with self.assertRaisesRegex(UserError, "has test/ but no train/"):
            self._load()
        self._refuses("no images", path=str(self._empty()))
        self._refuses("needs data.path, a folder of images with boxes, and data.size", size=0)

    def _empty(self):
        (self.root / "none").mkdir()
        return self.root / "none"


class GeometryTest(_Folder):
    @parameterized.product(
        native=((40, 80), (80, 40), (37, 91), (50, 50)),
        size=((40, 80), (60, 60), (120, 160)),
        how=tuple(pictures.FITTED),
    )
    def test_boxes_move_as_pixels_do(self, native, size, how):
        """A white box is where its moved box says, whatever is done to the picture."""
        height, width = native
        box = np.array([width * 0.3, height * 0.4, width * 0.7, height * 0.6]).round()
        pixels = np.zeros(native, np.uint8)
        pixels[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 255
        fitted = pictures.fit(Image.fromarray(pixels), size, how, Image.Resampling.BILINEAR)
        rows, columns = np.nonzero(np.asarray(fitted) > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        moved = boxes.moved_to(dict(boxes=box[None, None], classes=np.zeros((1, 1), int)), native, size, how)
        np.testing.assert_allclose(moved["boxes"][0, 0], seen, atol=1.01)

    def test_letterbox_is_in_the_upper_left_corner(self):
        fitted = np.asarray(
            pictures.fit(Image.new("L", (80, 40), 255), (40, 40), "letterbox", Image.Resampling.BILINEAR)
        )
        self.assertTrue((fitted[:20] == 255).all() and (fitted[20:] == 0).all())

    def test_what_a_crop_leaves(self):
        # 80x40 cropped to its middle 40x40: x from 20 to 60.
        found = np.array([[[25, 5, 55, 20], [15, 5, 30, 20], [5, 5, 30, 20], [0, 0, 10, 10], [0, 0, 0, 0]]], float)
        moved = boxes.moved_to(dict(boxes=found, classes=np.array([[0, 1, 0, 1, -1]])), (40, 80), (40, 40), "crop")
        self.assertEqual(moved["classes"].tolist(), [[0, 1, -2, -1, -1]])
        expected = [[5, 5, 35, 20], [0, 5, 10, 20], [0, 5, 10, 20], [0] * 4, [0] * 4]
        np.testing.assert_allclose(moved["boxes"][0], expected)

    def test_narrow_boxes_are_ignored(self):
        self._coco()
        loaded, _ = self._load(ignore_below=11.0, size="20,40")  # CAT is then 10 wide
        classes = np.concatenate([loaded.train.targets["classes"], loaded.test.targets["classes"]])
        self.assertCountEqual(classes.ravel().tolist(), [-2, 1, 0, -1, -1, -1])


class ArraysTest(absltest.TestCase):
    """Boxes from a user's own function or arrays."""

    def _load(self, found, classes, names=("cat", "dog"), **fields):
        images = np.zeros((2, 40, 80), np.uint8)
        targets = dict(boxes=np.array(found, np.float32), classes=np.array(classes))
        from atalaia.datasets import arrays

        return arrays.checked("mine", arrays.as_source("mine", (images, targets, names)))

    def test_valid(self):
        source = self._load([[CAT, DOG], [DOG, [0] * 4]], [[0, 1], [-2, -1]])
        self.assertEqual(source.names, ("cat", "dog"))

    def test_mistakes(self):
        for found, classes, pattern in (
            ([[CAT], [CAT]], [0, 1], r"\['classes'\] are int64 of shape \(2,\): int \(2, 1\) is needed"),
            ([CAT, CAT], [[0], [1]], r"\['boxes'\] are float32 of shape \(2, 4\)"),
            ([[CAT], [CAT]], [[0], [2]], "must be 0..1, -1 for no box.*the first that is not: box 0 of image 1"),
            ([[CAT], [CAT]], [[0], [-3]], "must be 0..1, -1"),
            ([[CAT], [[30, 5, 10, 25]]], [[0], [1]], "x0 < x1 and y0 < y1; .*box 0 of image 1"),
            ([[CAT], [[60, 5, 81, 25]]], [[0], [1]], "must be inside the image, in pixels of 40x80"),
            ([[CAT], [[60, 5, np.nan, 25]]], [[0], [1]], "NaN"),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(UserError, pattern):
                self._load(found, classes)


if __name__ == "__main__":
    absltest.main()
