"""Image folders of mixed sizes and modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.features import load_extractor
from evaluation.images import embed_files, image_batches, list_images, read_image


def save(file: Path, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def test_lists_images_in_name_order_only(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.jpeg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert [file.name for file in list_images(tmp_path)] == ["a.JPG", "b.png", "c.jpeg"]


def test_reads_png_pixels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", (5, 3)))
    assert image.shape == (3, 3, 5)
    assert image.dtype == torch.uint8
    assert torch.equal(
        image.permute(1, 2, 0), torch.from_numpy(np.asarray(Image.open(tmp_path / "a.png")).copy())
    )


def test_transparency_lies_over_white_and_palettes_and_grey_become_rgb(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    Image.new("P", (2, 2), 3).save(tmp_path / "palette.png")
    Image.new("L", (2, 2), 77).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "clear.png").unique().tolist() == [255]
    assert read_image(tmp_path / "palette.png").shape == (3, 2, 2)
    assert read_image(tmp_path / "grey.png").unique().tolist() == [77]


def test_exif_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 6, 4)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=rf"image .*{name} must be a readable PNG or JPEG"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"deep\.png must have 8 bits per channel, got mode I;16"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_batches_hold_one_size_and_every_position_once(tmp_path: Path, batch_size: int) -> None:
    files = [save(tmp_path / f"{i:02}.png", (4 + i % 3, 4), seed=i) for i in range(14)]
    seen: dict[int, Tensor] = {}
    for positions, images in image_batches(files, batch_size):
        assert len(positions) == len(images) <= batch_size
        seen |= dict(zip(positions, images, strict=True))
    assert sorted(seen) == list(range(14))
    assert all(torch.equal(seen[i], read_image(files[i])) for i in range(14))


def test_odd_sizes_do_not_pile_up(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i:02}.png", (i + 1, 3)) for i in range(20)]
    batches = image_batches(files, 2)
    first, _ = next(batches)
    assert first == [0]
    assert sum(len(positions) for positions, _ in batches) == 19


def test_embeddings_keep_the_order_of_files(weights: dict[str, Path], tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", (16 + 4 * (i % 2), 16), seed=i) for i in range(6)]
    extractor = load_extractor("clip", weights["clip"])
    found = embed_files(files, {"clip": extractor}, batch_size=2)["clip"]
    expected = torch.cat([extractor.embed(read_image(file)[None]) for file in files])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
