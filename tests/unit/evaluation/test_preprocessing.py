"""Preprocessing against Pillow and against the rules of each role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.preprocessing import Preprocessing, read_preprocessing


def plain(role: str, height: int, width: int) -> Preprocessing:
    return Preprocessing(role, height, width, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def smooth(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.linspace(0, 5, height), torch.linspace(0, 7, width), indexing="ij")
    planes = [rows.sin() + columns.cos(), (rows * columns).sin(), (rows - columns).cos()]
    return ((torch.stack(planes) + 2) * 63).to(torch.uint8)[None]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (90, 41), (12, 10)])
def test_clip_matches_pillow_to_one_grey_level(height: int, width: int) -> None:
    image = smooth(height, width)
    shorter = min(height, width)
    size = (width * 24 // shorter, height * 24 // shorter)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 24) // 2, (size[1] - 24) // 2
    expected = np.asarray(picture.crop((left, top, left + 24, top + 24)), dtype=np.float32)
    found = plain("clip", 24, 24)(image)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() <= 1.001
    np.testing.assert_allclose(found, found.round(), atol=1e-3)


def test_clip_crops_the_centre_and_the_others_squash() -> None:
    image = torch.zeros(1, 3, 8, 24, dtype=torch.uint8)
    image[..., 8:16] = 200
    assert float(plain("clip", 8, 8)(image).min()) == pytest.approx(200 / 255)
    for role in ("dino", "inception"):
        squashed = plain(role, 8, 8)(image)
        assert squashed.shape == (1, 3, 8, 8)
        assert float(squashed.min()) < 0.1
        assert float(squashed.max()) > 0.7


@pytest.mark.parametrize("role", ["clip", "dino", "inception"])
def test_images_of_the_right_size_keep_their_pixels(role: str) -> None:
    image = smooth(16, 16)
    torch.testing.assert_close(plain(role, 16, 16)(image) * 255, image.float())


def test_dino_resize_is_not_antialiased_and_stays_in_range() -> None:
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::4] = 255
    found = plain("dino", 4, 4)(stripes)
    expected = (
        torch.nn.functional.interpolate(stripes.float(), size=(4, 4), mode="bicubic").clamp(0, 255) / 255
    )
    torch.testing.assert_close(found, expected)


def read(tmp_path: Path, role: str, settings: dict[str, Any], model_size: int | None = None) -> Preprocessing:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return read_preprocessing(role, tmp_path, model_size)


STATS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
SHORTER = {"size": {"shortest_edge": 20}}
CROP = {"crop_size": {"height": 18, "width": 18}}


@pytest.mark.parametrize(
    ("role", "settings", "model_size", "expected"),
    [
        ("clip", SHORTER | CROP, 30, 18),
        ("clip", SHORTER, 30, 20),
        ("clip", {"size": 22}, 30, 22),
        ("dino", SHORTER | CROP, 30, 30),
        ("dino", {"size": {"height": 26, "width": 26}}, 30, 26),
        ("inception", SHORTER | CROP, None, 18),
        ("inception", SHORTER, None, 20),
    ],
)
def test_size_rules(
    tmp_path: Path, role: str, settings: dict[str, Any], model_size: int | None, expected: int
) -> None:
    found = read(tmp_path, role, settings | STATS, model_size)
    assert (found.height, found.width) == (expected, expected)
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (STATS, "size must be a number, height and width, or shortest_edge, got None"),
        ({"size": 8}, "image_mean must be a list of 3 numbers, got None"),
        ({"size": 8} | STATS | {"image_std": [1, 2]}, r"image_std must be a list of 3 numbers, got \[1, 2\]"),
        ({"size": 8} | STATS | {"image_std": [1, 0, 1]}, "image_std must be positive"),
        ({"size": {"height": 8, "width": 9}} | STATS, "clip role needs a square input, got 8x9"),
    ],
)
def test_names_file_and_rule(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}"):
        read(tmp_path, "clip", settings)
