"""Parquet data: what is refused, with its path, and what of it is read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prx import data, images, prepare
from prx.config import parse_run_config
from prx.errors import DataError
from tests.tiny import SIZE


def png(width: int, height: int, colour: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def run(world, **changes: Any):
    return parse_run_config(world.settings(data=world.settings()["data"] | changes))


def encode(world, cache: Path, **changes: Any) -> None:
    prepare.prepare([run(world, **changes)], cache, lambda what, done, total: None)


@pytest.fixture
def copied(world, tmp_path):
    """A copy of the training data that a test may damage."""
    return Path(shutil.copytree(world.root / "train", tmp_path / "train"))


def replaced(folder: Path, column: str, row: int, value: Any) -> None:
    file = folder / "part-00000.parquet"
    rows = pq.read_table(file).to_pydict()
    rows[column][row] = value
    pq.write_table(data.pa.table(rows), file)


def refused(world, tmp_path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        encode(world, tmp_path / "cache", **changes)
    return str(caught.value)


def test_missing_folder(world, tmp_path):
    message = refused(world, tmp_path, train=str(tmp_path / "nowhere"))
    assert message.startswith(
        "data.train: must be an existing folder of parquet files or embedded:NAME, got "
    )
    assert "nowhere" in message


def test_folder_without_parquet(world, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(world, tmp_path, reference=str(tmp_path / "empty"))
    assert message == f"data.reference: {tmp_path / 'empty'} holds no *.parquet file"


def test_files_without_a_row(world, tmp_path, copied):
    file = copied / "part-00000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    message = refused(world, tmp_path, train=str(copied))
    assert message == f"data.train: the *.parquet files in {copied} hold no row"


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_file_that_is_no_parquet(world, tmp_path, copied, damage):
    file = copied / "part-00000.parquet"
    content = file.read_bytes()
    file.write_bytes({"garbage": b"not parquet" * 99, "truncated": content[:-50], "empty": b""}[damage])
    message = refused(world, tmp_path, train=str(copied))
    assert message.startswith(f"data.train: {file} is not a readable parquet file (")


def test_file_that_breaks_while_it_is_read(world, tmp_path, copied):
    file = copied / "part-00000.parquet"
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(bytes(content))
    message = refused(world, tmp_path, train=str(copied))
    assert message.startswith(f"data.train: {file} breaks after row 0 (")


def test_missing_column(world, tmp_path):
    message = refused(world, tmp_path, captions={"caption_lang": 1.0})
    assert (
        "part-00000.parquet has no such column; must be one of image, caption_long, caption_short" in message
    )
    assert message.endswith("got 'caption_lang' (did you mean 'caption_long'?)")
    assert "data.reference: " in refused(world, tmp_path, prompt_column="prompt")


def test_too_few_rows(world, tmp_path):
    message = refused(world, tmp_path, num_train=49)
    assert message == f"data.train: 49 rows are asked for, {world.root / 'train'} has 48"


def test_too_few_reference_samples(world):
    changes = {"evaluation": world.settings()["evaluation"] | {"num_samples": 17}}
    with pytest.raises(DataError, match=r"^evaluation\.num_samples: 17 samples need .* there are 16$"):
        data.reference_set(parse_run_config(world.settings(**changes)), world.cache)


@pytest.mark.parametrize("content", [b"", b"no image", None, png(20, 20)[:60]])
def test_unreadable_image_names_its_row(world, tmp_path, copied, content):
    replaced(copied, "image", 37, content)
    message = refused(world, tmp_path, train=str(copied))
    assert message.startswith(
        f"data.train: {copied / 'part-00000.parquet'}, row 0 + 37: is not a readable image ("
    )


def test_caption_that_is_no_text_names_its_column(world, tmp_path, copied):
    replaced(copied, "caption_long", 3, None)
    message = refused(world, tmp_path, train=str(copied))
    assert message.endswith("column 'caption_long' must hold text in every row")


def test_attributes_that_are_no_json_name_their_row(world, tmp_path):
    folder = Path(shutil.copytree(world.root / "reference", tmp_path / "reference"))
    replaced(folder, "attributes", 5, "{colour: red}")
    config = run(world, reference=str(folder))
    with pytest.raises(DataError, match=r"row 0 \+ 5: attributes must be a JSON object"):
        data.reference_set(config, world.cache)


def test_damaged_chunk_and_bomb_are_unreadable_images(monkeypatch):
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    second = content.index(b"IDAT", content.index(b"IDAT") + 1)
    with pytest.raises(DataError, match="here: is not a readable image"):
        images.decode(content[:second] + b"\0\1\2\3" + content[second + 4 :], 16, "here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="decompression bomb"):
        images.decode(content, 16, "here")


def test_images_are_resized_on_the_short_side_and_cropped_in_the_middle():
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    found = images.decode(buffer.getvalue(), 16, "here")
    assert found.shape == (16, 16, 3)
    assert (found[:, 2:14] == (0, 0, 255)).all()
    assert images.decode(png(5, 9), 16, "here").shape == (16, 16, 3)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_are_read_as_evaluation_reads_them():
    exif, photo = Image.Exif(), Image.new("RGB", (16, 16), "red")
    exif[0x0112] = 6
    photo.paste("blue", (0, 0, 8, 16))
    turned = images.decode(saved(photo, "JPEG", exif=exif), 16, "here")
    assert turned[2, 8, 2] > 200 > 50 > turned[13, 8, 2], "the left half comes to the top"
    clear = images.decode(saved(Image.new("RGBA", (16, 16), (0, 0, 0, 0))), 16, "here")
    assert (clear == 255).all()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        assert images.decode(saved(Image.new(mode, (20, 18)), kind), 16, "here").shape == (16, 16, 3)


def test_sixteen_bits_would_be_white():
    deep = Image.fromarray(np.full((16, 16), 20_000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"^here: must have 8 bits per channel, got mode I;16$"):
        images.decode(saved(deep), 16, "here")


def test_another_column_of_pictures_is_encoded_anew(world, tmp_path, copied):
    file = copied / "part-00000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("second", table["image"].take(list(reversed(range(48))))), file)
    folders = {"train": str(copied), "reference": str(copied)}
    first, second = (
        prepare.plan(run(world, **folders, image_column=column), tmp_path) for column in ("image", "second")
    )
    assert first.latents[0].key != second.latents[0].key
    assert first.texts["caption_long"][0].key == second.texts["caption_long"][0].key


def test_hugging_face_image_structs_are_read():
    rows = [{"bytes": png(16, 16, (1, 2, 3)), "path": None}, png(16, 16, (1, 2, 3))]
    first, second = data.decode_images("here", rows, 16)
    assert torch.equal(first, second)
    assert first[:, 0, 0].tolist() == [1, 2, 3]


def test_uint8_and_unit_range_are_inverse():
    levels = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1, 1)
    unit = images.to_unit(levels)
    assert float(unit.min()) == -1
    assert float(unit.max()) == 1
    assert torch.equal(images.to_uint8(unit), levels)
    assert images.to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_only_the_rows_asked_for_are_read(world, copied, monkeypatch):
    shutil.copy(copied / "part-00000.parquet", copied / "part-00001.parquet")
    opened = []
    real = pq.ParquetFile
    monkeypatch.setattr(data.pq, "ParquetFile", lambda file: opened.append(file.name) or real(file))
    for num, files in ((20, 1), (48, 1), (50, 2)):
        opened.clear()
        dataset = data.train_set(run(world, train=str(copied), num_train=num).data, world.cache)
        rows = [
            text for _, batch in data.batches(dataset, ["caption_long"], 7) for text in batch["caption_long"]
        ]
        assert (len(rows), len(opened)) == (num, files)
    everything = pq.read_table(copied / "part-00000.parquet")["caption_long"].to_pylist() * 2
    assert rows == everything[:50]


def test_fingerprint_follows_rows_and_files(world, copied):
    def fingerprint(**changes: Any) -> str:
        return data.train_set(run(world, **changes).data, world.cache).fingerprint

    base = fingerprint()
    assert base == fingerprint() == fingerprint(train=str(copied))
    assert base != fingerprint(num_train=20)
    replaced(copied, "caption_long", 0, "a circle on grey")
    assert base != fingerprint(train=str(copied))


def test_reference_set_holds_the_first_held_out_rows(world):
    found = data.reference_set(world.config(), world.cache)
    rows = pq.read_table(world.root / "reference").to_pydict()
    assert found.images.shape == (8, 3, SIZE, SIZE)
    assert found.prompts == rows["caption_long"][:8]
    first = np.asarray(Image.open(io.BytesIO(rows["image"][0])))
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), first)
    assert found.attributes[0] == {"colour": found.prompts[0].split()[0]}
