"""Images: what becomes a row, what a reject, and what of it stays in order and in bounds."""

import io
import os
import struct
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refit.config import ImagesSource
from refit.errors import RefusedError, SourceError
from refit.schema import column_of
from refit.sources import images
from refit.sources.seen import Seen
from refit.sources.stores import TransientError
from tests.refit.object_store import running_store, set_credentials

SMALL = (4, 6, 3)


def source_of(folder, **options):
    return ImagesSource.model_validate({"kind": "images", "path": str(folder), "shape": SMALL, **options})


def list_inputs(folder, **options):
    return images.list_inputs(source_of(folder, **options), {}, Seen())


def read(found):
    with tempfile.TemporaryDirectory() as spool, images.open_input(found, Path(spool)) as opened:
        batches = list(opened.read())
    for batch in batches:
        assert [column_of(field) for field in batch.schema] == list(opened.columns)
        batch.validate(full=True)
    return pa.Table.from_batches(batches) if batches else None, opened.rejects


def read_one(folder, content, **options):
    """The pixels of one file, or the reason why it is rejected."""
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "1.jpg").write_bytes(content)
    table, rejects = read(list_inputs(folder, **options)[0])
    if rejects:
        assert (table, len(rejects), rejects[0].file, rejects[0].text) == (None, 1, "a/1.jpg", "")
        return rejects[0].reason
    return table["image"][0].as_py() if options.get("store") == "encoded" else pixels(table)[0]


def pixels(table):
    return table["image"].combine_chunks().to_numpy_ndarray()


def picture(height=4, width=6, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values) if mode == "RGBA" else Image.fromarray(values[..., :3].copy()).convert(mode)


def encode(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def write_classes(folder, **classes):
    for label, files in classes.items():
        for name, content in files.items():
            path = folder / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


# ---- class folders


def test_each_class_folder_is_an_input_with_its_name_as_label(tmp_path):
    write_classes(
        tmp_path,
        cat={"2.png": encode(picture(seed=2)), "1.JPG": encode(picture(seed=1)), "more/3.bmp": encode(picture(seed=3), "BMP")},
        dog={"1.png": encode(picture(seed=4))},
    )
    found = list_inputs(tmp_path)
    assert [one.name for one in found] == [f"{tmp_path}/cat", f"{tmp_path}/dog"]
    table, rejects = read(found[0])
    assert table.schema.names == ["path", "image", "label"]
    assert table["path"].to_pylist() == ["cat/1.JPG", "cat/2.png", "cat/more/3.bmp"]
    assert table["label"].to_pylist() == ["cat"] * 3
    assert rejects == []
    assert np.array_equal(pixels(table), [np.asarray(picture(seed=seed)) for seed in (1, 2, 3)])


def test_a_path_may_be_relative_or_end_in_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", cat={"1.png": encode(picture())})
    for path in ("photos", "photos/", "./photos", str(tmp_path / "photos")):
        table, _ = read(images.list_inputs(ImagesSource(kind="images", path=path, shape=SMALL), {}, Seen())[0])
        assert table["path"].to_pylist() == ["cat/1.png"]
    monkeypatch.chdir(tmp_path / "photos")
    assert [one.name for one in images.list_inputs(ImagesSource(kind="images", path=".", shape=SMALL), {}, Seen())] == ["./cat"]


def test_stray_and_hidden_files_are_passed_over(tmp_path, caplog):
    stray = {"Thumbs.db": b"x", ".DS_Store": b"x", "README": b"x", "._1.png": b"x", ".ipynb_checkpoints/1.png": encode(picture())}
    write_classes(tmp_path, cat={"1.png": encode(picture()), **stray}, empty={"notes.txt": b"x"})
    (tmp_path / "cover.png").write_bytes(b"x")
    (found,) = list_inputs(tmp_path)
    table, rejects = read(found)
    assert (table["path"].to_pylist(), rejects) == (["cat/1.png"], [])
    assert "1 images lie in no class folder" in caplog.text


def test_the_digest_follows_names_contents_and_reading_but_not_the_place(tmp_path):
    def digest_of(place, files, **options):
        write_classes(tmp_path / place, cat=files)
        return list_inputs(tmp_path / place, **options)[0].digest

    first = digest_of("a", {"1.png": b"1", "2.png": b"2"})
    assert digest_of("b", {"1.png": b"1", "2.png": b"2"}) == first
    assert digest_of("c", {"1.png": b"2", "2.png": b"1"}) != first
    assert digest_of("d", {"1.png": b"1", "3.png": b"2"}) != first
    assert digest_of("e", {"1.png": b"1"}) != first
    assert digest_of("f", {"1.png": b"1", "2.png": b"2"}, resize=True) != first


def test_a_missing_folder_and_one_without_classes_are_errors(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        list_inputs(tmp_path / "none")
    (tmp_path / "1.png").write_bytes(encode(picture()))
    with pytest.raises(SourceError, match=r"no image lies in a class folder.* Received: 1 images in the folder itself"):
        list_inputs(tmp_path)


# ---- one image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "GIF"])
def test_the_kind_is_told_by_content_and_not_by_name(tmp_path, kind):
    image = picture(mode="L")
    result = read_one(tmp_path, encode(image, kind), shape=(4, 6, 1), resize=kind == "GIF")  # grey GIFs have a palette
    assert np.abs(result[..., 0].astype(int) - np.asarray(image)).mean() < (15 if kind == "JPEG" else 0.001)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode(picture(6, 4)), "4 x 6 RGB expected, received 6 x 4 RGB"),
        (encode(picture(mode="L")), "4 x 6 RGB expected, received 4 x 6 L"),
        (encode(picture(mode="RGBA")), "4 x 6 RGB expected, received 4 x 6 RGBA"),
        (encode(picture(mode="P")), "4 x 6 RGB expected, received 4 x 6 P"),
        (encode(picture(mode="CMYK"), "JPEG"), "4 x 6 RGB expected, received 4 x 6 CMYK"),
    ],
    ids=["size", "grey", "alpha", "palette", "cmyk"],
)
@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_an_image_of_another_shape_is_rejected_unless_it_is_resized(tmp_path, content, reason, store):
    assert read_one(tmp_path, content, store=store) == reason
    if store == "decoded":
        assert read_one(tmp_path, content, resize=True).shape == SMALL


def bomb(width, height):
    """A PNG that says it is very large; a few bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    framed = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


BIG_PNG, BIG_JPEG = encode(picture(64, 64)), encode(picture(64, 64), "JPEG")
UNUSABLE = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404</html>", "this is no JPEG, PNG, GIF or BMP"),
    "another kind of image": (encode(picture(), "TIFF"), "this is no JPEG, PNG, GIF or BMP"),
    "a header alone": (BIG_JPEG[:20], "this is no JPEG, PNG, GIF or BMP"),
    "a truncated JPEG": (BIG_JPEG[: len(BIG_JPEG) // 2], "truncated"),
    "a truncated progressive JPEG": (encode(picture(64, 64), "JPEG", progressive=True)[:-400], "truncated"),
    "a truncated PNG": (BIG_PNG[: len(BIG_PNG) // 2], "cannot be decoded"),
    "a PNG without its end": (BIG_PNG[:-12], "cannot be decoded"),
    "a PNG with a flipped bit": (BIG_PNG[:3000] + bytes([BIG_PNG[3000] ^ 1]) + BIG_PNG[3001:], "cannot be decoded"),
    "a truncated GIF": (encode(picture(64, 64, "P"), "GIF")[:-900], "cannot be decoded"),
    "a truncated BMP": (encode(picture(64, 64), "BMP")[:-900], "truncated"),
    "a bomb": (bomb(12_000, 12_000), "more pixels than"),
    "a large bomb": (bomb(60_000, 60_000), "more pixels than"),
}


@pytest.mark.parametrize("options", [{"resize": True}, {"store": "encoded", "shape": None}], ids=["decoded", "encoded"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_cannot_be_decoded_is_a_reject(tmp_path, kind, options):
    content, reason = UNUSABLE[kind]
    result = read_one(tmp_path, content, **options)
    assert isinstance(result, str)
    assert reason in result
    assert "0x" not in result  # an address of memory would make the record differ from run to run


def test_a_file_larger_than_the_limit_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    assert read_one(tmp_path, bytes(101)) == "the file holds 101 bytes, more than 100"


def test_metadata_that_are_no_metadata_do_not_cost_an_image(tmp_path):
    content = encode(picture(), "PNG", exif=b"nonsense")
    assert read_one(tmp_path, content).shape == SMALL
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(content)).getexif()


def test_broken_metadata_do_not_warn(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\xff\xff\xff\x7f\x06\0\0\0"
    content = encode(picture(), "JPEG", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_one(tmp_path, content).shape == SMALL
        assert caught == []
        Image.open(io.BytesIO(content)).getexif().get(0x0112)
        assert caught  # by Pillow alone
    with warnings.catch_warnings(action="error"):
        assert read_one(tmp_path, content).shape == SMALL


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]), st.data())
def test_whatever_is_broken_in_a_file_it_gives_a_row_or_a_reject(tmp_path, kind, data):
    content = bytearray(encode(picture(12, 12, "P" if kind == "GIF" else "RGB"), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    result = read_one(tmp_path, bytes(content[: data.draw(st.integers(0, len(content)))]), resize=True)
    assert isinstance(result, str) or result.shape == SMALL


# ---- resizing


def resized(image, shape=SMALL):
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)).reshape(shape)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("stored", ["1", "L", "RGB", "P"])
def test_opaque_images_are_converted_and_resized_as_pillow_does(tmp_path, stored, channels, mode):
    image = picture(10, 9, stored)
    result = read_one(tmp_path, encode(image), shape=(4, 6, channels), resize=True)
    assert np.array_equal(result, resized(image.convert(mode), (4, 6, channels)))


def test_transparent_pixels_are_laid_over_black(tmp_path):
    clear = np.full((4, 6, 4), 200, np.uint8)
    clear[..., 3] = 0
    clear[:, 3:, 3] = 255
    expected = np.zeros((4, 6), np.uint8)
    expected[:, 3:] = 200
    palette = Image.new("P", (6, 4))
    palette.putpalette([200, 200, 200] * 2)
    palette.putdata([0, 0, 0, 1, 1, 1] * 4)
    keyed = Image.fromarray(np.where(np.arange(6) < 3, 7, 200).astype(np.uint8).repeat(4).reshape(6, 4).T.copy())
    for content in (
        encode(Image.fromarray(clear)),
        encode(Image.fromarray(clear).convert("LA")),
        encode(palette, transparency=b"\0\xff"),
        encode(palette, "GIF", transparency=0),
        encode(keyed, transparency=7),
    ):
        assert np.array_equal(read_one(tmp_path, content, resize=True), expected[..., None].repeat(3, -1))
        assert np.array_equal(read_one(tmp_path, content, resize=True, shape=(4, 6, 1)), expected[..., None])
        assert np.array_equal(read_one(tmp_path, content, resize=True, shape=(4, 6, 4))[..., 3], clear[..., 3])


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path):
    values = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    result = read_one(tmp_path, encode(Image.fromarray(values)), resize=True, shape=(4, 6, 1))
    assert np.array_equal(result[..., 0], values >> 8)


def test_the_colours_of_a_cmyk_jpeg_are_kept(tmp_path):
    content = encode(Image.new("RGB", (60, 40), (250, 20, 20)).convert("CMYK"), "JPEG")
    assert np.abs(read_one(tmp_path, content, resize=True).astype(int) - [250, 20, 20]).max() < 8


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("L", (6, 4), grey) for grey in (10, 200)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(read_one(tmp_path, content, resize=True)).tolist() == [10]


def test_of_several_pictures_in_one_jpeg_the_first_is_taken(tmp_path):
    content = encode(Image.new("RGB", (60, 40), "white"), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    assert read_one(tmp_path, content, resize=True).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_exif_orientation_is_honoured(tmp_path, kind, orientation):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[:20, 30:], upright[20:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, images._TURNS.get(orientation))
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(stored, kind, exif=exif)
    small = read_one(tmp_path, content, resize=True)
    assert np.abs(small[0, 0].astype(int) - (255, 0, 0)).max() < 20
    assert np.abs(small[0, -1].astype(int) - (0, 255, 0)).max() < 20
    assert np.abs(small[-1, 0].astype(int) - (0, 0, 255)).max() < 20
    whole = read_one(tmp_path, content, shape=(40, 60, 3))
    assert np.abs(whole.astype(int) - upright).mean() < 12


@pytest.mark.parametrize("channels", [1, 3])
def test_a_reduced_jpeg_looks_as_one_that_is_decoded_whole(tmp_path, channels):
    smooth = picture(20, 30).resize((301, 203), Image.Resampling.BICUBIC)
    content = encode(smooth, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
    shape = (24, 36, channels)
    difference = read_one(tmp_path, content, shape=shape, resize=True).astype(int) - resized(whole, shape)
    assert np.abs(difference).mean() < 2
    assert np.abs(difference).max() < 16


# ---- encoded


def test_encoded_images_keep_their_bytes(tmp_path):
    content = encode(picture(9, 9), "JPEG")
    assert read_one(tmp_path, content, store="encoded", shape=None) == content
    assert read_one(tmp_path, content, store="encoded", shape=(9, 9, 3)) == content
    (found,) = list_inputs(tmp_path, store="encoded", shape=None)
    with images.open_input(found, tmp_path) as opened:
        assert [(column.name, column.type) for column in opened.columns] == [("path", "string"), ("image", "binary"), ("label", "string")]
        assert next(opened.read())["image"].type == pa.binary()


# ---- manifests


def write_manifest(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text)
    return {"manifest": str(path)}


def test_a_manifest_gives_its_columns_in_its_order(tmp_path):
    write_classes(tmp_path / "files", x={"1": encode(picture(seed=1)), "2.png": encode(picture(seed=2))})
    options = write_manifest(tmp_path, 'name,breed,weight,zip\n./x/2.png,"a, b",1.5,007\nx/1,c,,010\nx/2.png,d,2,020\n')
    (found,) = list_inputs(tmp_path / "files", file_column="name", **options)
    assert found.name == options["manifest"]
    table, rejects = read(found)
    assert rejects == []
    assert table.drop("image").to_pydict() == {
        "path": ["x/2.png", "x/1", "x/2.png"],
        "breed": ["a, b", "c", "d"],
        "weight": [1.5, None, 2.0],
        "zip": ["007", "010", "020"],
    }
    assert table.schema.names[:2] == ["path", "image"]
    assert np.array_equal(pixels(table), [np.asarray(picture(seed=seed)) for seed in (2, 1, 2)])


def test_a_manifest_may_be_parquet(tmp_path):
    write_classes(tmp_path / "files", x={"1.png": encode(picture())})
    labels = pa.array(["a"]).dictionary_encode()
    pq.write_table(pa.table({"y": pa.array([3], pa.int8()), "path": ["x/1.png"], "label": labels}), tmp_path / "table")
    table, _ = read(list_inputs(tmp_path / "files", manifest=str(tmp_path / "table"))[0])
    assert table.drop("image").to_pylist() == [{"path": "x/1.png", "y": 3, "label": "a"}]
    assert table.schema.field("y").type == pa.int8()
    assert table.schema.field("label").type == pa.string()


def test_rows_without_a_usable_file_are_rejects_and_others_stay(tmp_path):
    write_classes(tmp_path / "files", x={"1.png": encode(picture()), "2.png": b"no image"})
    (tmp_path / "secret.png").write_bytes(encode(picture()))
    names = ["x/1.png", "x/none.png", "../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", "", "x/2.png", "x", "x/1.png"]
    options = write_manifest(tmp_path, "path,y\n" + "".join(f"{name},{y}\n" for y, name in enumerate(names)))
    table, rejects = read(list_inputs(tmp_path / "files", **options)[0])
    assert table["y"].to_pylist() == [0, 8]
    reasons = [(reject.row, reject.file, reject.reason.split(",")[0]) for reject in rejects]
    outside = "the name leads out of the folder"
    assert reasons == [
        (1, "x/none.png", "the file does not exist"),
        (2, "../secret.png", outside),
        (3, str(tmp_path / "secret.png"), outside),
        (4, "x/../../secret.png", outside),
        (5, None, "the row names no file"),
        (6, "x/2.png", "this is no JPEG"),
        (7, "x", "the file does not exist"),
    ]


def test_broken_lines_of_a_manifest_are_rejects(tmp_path):
    write_classes(tmp_path / "files", x={"1.png": encode(picture())})
    options = write_manifest(tmp_path, "path,y\nx/1.png,1\nx/1.png,2,3,4\nx/1.png,5\n")
    table, rejects = read(list_inputs(tmp_path / "files", **options)[0])
    assert table["y"].to_pylist() == [1, 5]
    assert [(reject.line, reject.text) for reject in rejects] == [(3, "x/1.png,2,3,4")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,label", 'no column "path" that names the files. Received: file, label'),
        ("path;label", "Received: path;label"),
        ("path,Image", "'image' of the manifest have a name that is taken"),
    ],
)
def test_a_manifest_without_the_right_columns_is_an_error(tmp_path, header, message):
    write_classes(tmp_path / "files", x={"1.png": encode(picture())})
    with pytest.raises(SourceError) as caught:
        list_inputs(tmp_path / "files", **write_manifest(tmp_path, f"{header}\nx/1.png,1\n"))
    assert message in str(caught.value)
    assert str(tmp_path / "table.csv") in str(caught.value)


def test_a_manifest_column_that_cannot_be_stored_is_an_error(tmp_path):
    write_classes(tmp_path, x={"1.png": encode(picture())})
    pq.write_table(pa.table({"path": ["x/1.png"], "boxes": [[1, 2]]}), tmp_path / "table")
    with pytest.raises(SourceError, match='"boxes" of the manifest cannot be stored'):
        list_inputs(tmp_path, manifest=str(tmp_path / "table"))


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"], ids=["empty", "damaged Parquet"])
def test_a_manifest_that_cannot_be_read_is_an_input_that_is_refused(tmp_path, content):
    (tmp_path / "table").write_bytes(content)
    (found,) = list_inputs(tmp_path, manifest=str(tmp_path / "table"))
    with pytest.raises(RefusedError, match=r"table: the (manifest cannot be read|file is empty)"):
        read(found)


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        list_inputs(tmp_path, manifest=str(tmp_path / "none.csv"))


def test_a_manifests_digest_follows_the_table_and_the_files_that_it_names(tmp_path):
    files = {"1.png": b"1", "2.png": b"2"}
    write_classes(tmp_path, x=files)
    options = write_manifest(tmp_path, "path,y\nx/1.png,1\n")
    first = list_inputs(tmp_path, **options)[0].digest
    write_classes(tmp_path, x={"2.png": b"22"})
    assert list_inputs(tmp_path, **options)[0].digest == first
    write_classes(tmp_path, x={"1.png": b"11"})
    second = list_inputs(tmp_path, **options)[0].digest
    write_manifest(tmp_path, "path,y\nx/1.png,2\n")
    third = list_inputs(tmp_path, **options)[0].digest
    (tmp_path / "x" / "1.png").unlink()
    assert len({first, second, third, list_inputs(tmp_path, **options)[0].digest}) == 4


# ---- order and bounds


def test_batches_are_bounded_and_rows_keep_their_order(tmp_path, monkeypatch):
    names = [f"{number:03}.png" for number in range(40)]
    write_classes(tmp_path, x={name: b"bad" if number % 7 == 3 else encode(picture(seed=number)) for number, name in enumerate(names)})
    (found,) = list_inputs(tmp_path)
    monkeypatch.setattr(images, "BATCH_IMAGES", 10)
    with images.open_input(found, tmp_path) as opened:
        batches = list(opened.read())
    assert [len(batch) for batch in batches] == [10, 10, 10, 4]
    assert [name for batch in batches for name in batch["path"].to_pylist()] == [f"x/{n}" for i, n in enumerate(names) if i % 7 != 3]
    assert [reject.row for reject in opened.rejects] == [3, 10, 17, 24, 31, 38]
    monkeypatch.setattr(images, "BATCH_BYTES", 5 * 72)
    with images.open_input(found, tmp_path) as opened:
        assert max(len(batch) for batch in opened.read()) == 5


@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_no_more_is_decoded_ahead_than_the_bounds_allow(tmp_path, monkeypatch, store):
    write_classes(tmp_path, x={f"{number:03}.png": encode(picture(seed=number)) for number in range(100)})
    fetched, fetch = [], images._fetch
    monkeypatch.setattr(images, "_fetch", lambda file, *rest: fetched.append(file) or fetch(file, *rest))
    monkeypatch.setattr(images, "BATCH_IMAGES", 5)
    (found,) = list_inputs(tmp_path, store=store)
    with images.open_input(found, tmp_path) as opened:
        next(opened.read())
    assert len(fetched) <= 6 + images._AHEAD * len(os.sched_getaffinity(0))


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_LARGE_IMAGE_BYTES", 10)
    write_classes(tmp_path, x={f"{number}.png": encode(picture(300, 300, seed=number)) for number in range(12)})
    busy, most, guard, convert = [0], [0], threading.Lock(), images._converted

    def counted(image, mode):
        with guard:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        try:
            return convert(image, mode)
        finally:
            with guard:
                busy[0] -= 1

    monkeypatch.setattr(images, "_converted", counted)
    assert read(list_inputs(tmp_path, resize=True)[0])[0].num_rows == 12
    assert most == [1]


def test_no_thread_outlives_an_input_that_is_left_early(tmp_path):
    write_classes(tmp_path, x={f"{number}.png": encode(picture()) for number in range(50)})
    with images.open_input(list_inputs(tmp_path)[0], tmp_path) as opened:
        opened.read()
    with images.open_input(list_inputs(tmp_path)[0], tmp_path) as opened:
        next(opened.read())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("refit-images")]


def test_a_file_that_is_gone_since_it_was_listed_is_no_reject(tmp_path):
    write_classes(tmp_path, x={"1.png": encode(picture()), "2.png": encode(picture())})
    (found,) = list_inputs(tmp_path)
    (tmp_path / "x" / "2.png").unlink()
    with pytest.raises(TransientError, match=r"2\.png"):
        read(found)


@pytest.mark.parametrize("has_manifest", [False, True])
def test_images_of_an_object_store_are_read_as_those_of_a_folder(store, has_manifest):
    options = {"manifest": store.address("table.csv")} if has_manifest else {}
    (found,) = list_inputs(store.address("files"), endpoint=store.endpoint, **options)
    table, rejects = read(found)
    assert found.name == store.address("table.csv" if has_manifest else "files/x")
    assert table["path"].to_pylist() == ["x/1.png", "x/2.png"]
    assert table["label"].to_pylist() == (["a", "b"] if has_manifest else ["x", "x"])
    assert [reject.file for reject in rejects] == ["x/3.png"]


@pytest.fixture(scope="module")
def server():
    with running_store() as store:
        store.put("table.csv", b"path,label\nx/1.png,a\nx/2.png,b\nx/3.png,c\n")
        for name, content in {"1.png": encode(picture(seed=1)), "2.png": encode(picture(seed=2)), "3.png": b"bad"}.items():
            store.put(f"files/x/{name}", content)
        yield store


@pytest.fixture
def store(server, monkeypatch):
    set_credentials(monkeypatch)
    return server


def test_cifar_10_gives_ten_classes_of_a_hundred():
    folder = Path(os.environ.get("REFIT_DATA", "")) / "cifar10_jpeg" / "dev_subset"
    if "REFIT_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("REFIT_DATA names no folder with cifar10_jpeg")
    found = list_inputs(folder, shape=(32, 32, 3))
    assert len(found) == 10
    for one in found:
        table, rejects = read(one)
        assert (table.num_rows, rejects) == (100, [])
        assert 60 < pixels(table).mean() < 180
