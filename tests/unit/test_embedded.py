"""Check the embedded world: scenes, data set, and that the shipped weights load and are good enough."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from prx.embedded import ROLES, weights_folder
from prx.embedded.dataset import COLUMNS, SPLIT_SEEDS, split_folder, write_dataset
from prx.embedded.scenes import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    NONE,
    Scene,
    SceneObject,
    attributes,
    caption_long,
    caption_short,
    coverage,
    patch_labels,
    render,
    sample_scene,
    vocabulary,
)

_MEGABYTE = 1_000_000
_CIRCLE = SceneObject("circle", "red", "large", 0, (0, 0))
_SQUARE = SceneObject("square", "blue", "small", 8, (1, -1))
_SCENE = Scene("white", (_CIRCLE, _SQUARE))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(777)
    return [sample_scene(rng) for _ in range(192)]


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> Tensor:
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((weights_folder("flux").parent / "card.json").read_text(encoding="utf-8"))


def test_one_seed_gives_one_scene_and_picture() -> None:
    first, second = (sample_scene(np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert np.array_equal(render(first), render(second))


def test_scenes_differ() -> None:
    rng = np.random.default_rng(0)
    assert len({sample_scene(rng) for _ in range(5000)}) > 4900


def test_captions_name_what_the_attributes_say() -> None:
    expected = "a large red circle at the top left and a small blue square at the bottom right on a white background"
    assert caption_long(_SCENE) == expected
    assert caption_short(_SCENE) == "red circle and blue square"
    assert attributes(_SCENE)["second_position"] == "bottom right"
    assert attributes(Scene("white", (_CIRCLE,)))["second_shape"] == NONE


def test_every_attribute_value_and_word_is_declared(scenes: list[Scene]) -> None:
    words = set(vocabulary())
    for scene in scenes:
        assert words.issuperset(caption_long(scene).split())
        assert words.issuperset(caption_short(scene).split())
        found = attributes(scene)
        assert list(found) == list(ATTRIBUTES)
        assert all(value in ATTRIBUTES[name] for name, value in found.items())


def test_pictures_show_their_objects(scenes: list[Scene]) -> None:
    for scene in scenes:
        pixels = render(scene)
        for item in scene.objects:
            alone = (coverage(item) == 1) & (sum(coverage(other) for other in scene.objects) == 1)
            assert alone.any()
            assert (pixels[alone] == COLOURS[item.colour]).all()


def test_objects_are_in_reading_order_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert [item.position for item in scene.objects] == sorted({item.position for item in scene.objects})
        assert np.max(sum(coverage(item) for item in scene.objects)) <= 2
        assert (sum((coverage(item) > 0.5).astype(int) for item in scene.objects) > 1).sum() <= IMAGE_SIZE // 2


def test_patch_labels_follow_coverage(scenes: list[Scene]) -> None:
    colours, shapes = patch_labels(_SCENE)
    assert colours.shape == shapes.shape == (8, 8)
    assert (colours[1, 1], shapes[1, 1]) == (1 + list(COLOURS).index("red"), 1)
    assert (colours[7, 0], shapes[7, 0]) == (0, 0)
    for scene in scenes:
        colours, shapes = patch_labels(scene)
        assert np.array_equal(colours == 0, shapes == 0)


def test_dataset_has_the_columns_and_shards_of_real_data(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num=10, seed=3, rows_per_shard=4)
    shards = sorted(path.name for path in (tmp_path / "data").glob("*.parquet"))
    assert shards == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    rows = pq.read_table(tmp_path / "data").to_pylist()
    assert len(rows) == len({row["id"] for row in rows}) == 10
    assert set(rows[0]) == set(COLUMNS)
    picture = Image.open(io.BytesIO(rows[0]["image"]))
    assert (picture.size, picture.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")
    assert set(json.loads(rows[0]["attributes"])) == set(ATTRIBUTES)


def test_dataset_is_deterministic_and_sharding_does_not_change_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", num=6, seed=3, rows_per_shard=6)
    write_dataset(tmp_path / "b", num=6, seed=3, rows_per_shard=4)
    write_dataset(tmp_path / "c", num=6, seed=4)
    one, same, other = (pq.read_table(tmp_path / name).to_pylist() for name in "abc")
    assert one == same
    assert [row["image"] for row in one] != [row["image"] for row in other]


def test_finished_dataset_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num=3, seed=3)
    shard = tmp_path / "data" / "part-00000.parquet"
    before = shard.stat().st_mtime_ns
    write_dataset(tmp_path / "data", num=3, seed=3)
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="must be absent, empty or hold"):
        write_dataset(tmp_path / "data", num=4, seed=3)


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("prx.embedded.dataset.pq.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "data", num=3, seed=3)
    assert list(tmp_path.iterdir()) == []


def test_splits_differ_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    folders = [split_folder(name, 4, tmp_path) for name in SPLIT_SEEDS]
    tables = [pq.read_table(folder).to_pylist() for folder in folders]
    assert tables[0] != tables[1]
    with pytest.raises(ValueError, match="embedded split must be one of train, reference, got 'tets'"):
        split_folder("tets", 4, tmp_path)


def test_unknown_role_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"embedded role must be one of flux, .*, got 'vae'"):
        weights_folder("vae")


def test_command_line_writes_a_dataset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prx.embedded", "dataset", "--out", str(tmp_path / "d"), "--num", "3"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert pq.read_table(tmp_path / "d").num_rows == 3


def test_weights_are_small_and_every_role_is_in_the_card(card: dict[str, Any]) -> None:
    files = list(weights_folder("flux").parent.rglob("*.safetensors"))
    sizes = [file.stat().st_size for file in files]
    assert sum(sizes) <= 8 * _MEGABYTE
    assert max(sizes) <= 1.4 * _MEGABYTE
    assert set(card) == set(ROLES)


def test_card_and_configs_hold_no_machine_paths() -> None:
    root = weights_folder("flux").parent
    texts = [path.read_text(encoding="utf-8") for path in root.rglob("*") if path.suffix in {".json", ".md"}]
    assert len(texts) > len(ROLES)
    assert not [text for text in texts if "/tmp" in text or "/home" in text or str(Path.cwd()) in text]
