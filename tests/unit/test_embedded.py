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
    expected = (
        "a large red circle at the top left and a small blue square at the bottom right on a white background"
    )
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
        assert (
            sum((coverage(item) > 0.5).astype(int) for item in scene.objects) > 1
        ).sum() <= IMAGE_SIZE // 2


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
    with pytest.raises(ValueError, match="embedded split must be one of train, reference, photos, got 'tets'"):
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


def _load(library: Any, role: str) -> Any:
    return library.from_pretrained(weights_folder(role)).eval()


def _prepared(role: str, images: Tensor) -> Tensor:
    config = json.loads((weights_folder(role) / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return (images - mean) / std


@torch.no_grad()
@pytest.mark.parametrize(("role", "bound_db"), [("flux", 26.0), ("flux2", 28.0), ("repa_e", 25.5)])
def test_tokenizers_reconstruct(role: str, bound_db: float, images: Tensor) -> None:
    from diffusers import AutoencoderKL, AutoencoderKLFlux2

    vae = _load(AutoencoderKLFlux2 if role == "flux2" else AutoencoderKL, role)
    latent = vae.encode(2 * images - 1).latent_dist.mode()
    assert latent.shape[1:] == ((32, 8, 8) if role == "flux2" else (4, 8, 8))
    error = ((vae.decode(latent).sample.clamp(-1, 1) + 1) / 2 - images).square().mean((1, 2, 3))
    assert (-10 * error.log10()).mean() > bound_db
    if role == "flux2":
        folded = torch.nn.functional.pixel_unshuffle(latent, 2)
        latent = (folded - vae.bn.running_mean[:, None, None]) / (
            vae.bn.running_var[:, None, None] + 1e-4
        ).sqrt()
    else:
        latent = (latent - vae.config.shift_factor) * vae.config.scaling_factor
    assert latent.mean().abs() < 0.15
    assert 0.8 < latent.std() < 1.2


@torch.no_grad()
@pytest.mark.parametrize("role", ["dinov2", "dinov3", "dino_mmd"])
def test_vision_transformers_load_with_registers(role: str, images: Tensor) -> None:
    from transformers import Dinov2WithRegistersModel, DINOv3ViTModel

    model = _load(DINOv3ViTModel if role == "dinov3" else Dinov2WithRegistersModel, role)
    states = model(pixel_values=_prepared(role, images[:16])).last_hidden_state
    assert model.config.num_register_tokens == 4
    assert states.shape == (16, 1 + 4 + 64, model.config.hidden_size)
    assert states.dtype == torch.float32


@pytest.mark.parametrize("role", ["dinov2", "dinov3"])
def test_teacher_patches_know_what_they_cover(role: str, card: dict[str, Any]) -> None:
    for label in ("colour", "shape"):
        probe = card[role]["patch_probe"][label]
        assert probe["accuracy"] > probe["majority"] + 0.05
        assert probe["foreground"] > 0.9


def test_alignment_shows_in_the_latent(scenes: list[Scene], images: Tensor) -> None:
    from diffusers import AutoencoderKL

    from prx.embedded.training.common import linear_probe

    labels = torch.from_numpy(np.stack([patch_labels(scene)[0].ravel() for scene in scenes]))
    found = {}
    for role in ("flux", "repa_e"):
        with torch.no_grad():
            latent = _load(AutoencoderKL, role).encode(2 * images - 1).latent_dist.mode().flatten(2).mT
        halves = [
            (latent[part].flatten(0, 1), labels[part].flatten()) for part in (slice(96), slice(96, None))
        ]
        found[role] = linear_probe(halves[0], halves[1], 9).foreground
    assert found["repa_e"] > found["flux"] + 0.1


@torch.no_grad()
def test_reader_reads_attributes(scenes: list[Scene], images: Tensor) -> None:
    from transformers import ResNetForImageClassification

    model = _load(ResNetForImageClassification, "reader")
    logits = model(pixel_values=_prepared("reader", images)).logits
    labels = [model.config.id2label[i] for i in range(logits.shape[1])]
    for name in ATTRIBUTES:
        columns = [i for i, label in enumerate(labels) if label.startswith(f"{name}=")]
        best = logits[:, columns].argmax(1)
        read = [labels[columns[i]].partition("=")[2] for i in best.tolist()]
        right = np.mean([value == attributes(scene)[name] for value, scene in zip(read, scenes, strict=True)])
        assert right > 0.97, name


@torch.no_grad()
def test_clip_image_tower_and_inception_give_features(images: Tensor) -> None:
    from transformers import CLIPVisionModelWithProjection, ResNetForImageClassification

    clip = _load(CLIPVisionModelWithProjection, "clip")
    assert clip(pixel_values=_prepared("clip", images[:8])).image_embeds.shape == (
        8,
        clip.config.projection_dim,
    )
    inception = _load(ResNetForImageClassification, "inception")
    pooled = inception.resnet(_prepared("inception", images[:8])).pooler_output
    assert pooled.flatten(1).shape == (8, 64)


def test_clip_finds_the_caption_of_a_picture(card: dict[str, Any]) -> None:
    retrieval = card["clip"]["retrieval"]
    assert min(retrieval["image_to_text_top1"], retrieval["text_to_image_top1"]) > 100 * retrieval["chance"]


@torch.no_grad()
def test_text_encoder_handles_empty_text_and_padding() -> None:
    from transformers import AutoTokenizer, T5GemmaEncoderModel

    tokenizer = AutoTokenizer.from_pretrained(weights_folder("text_encoder"))
    model = _load(T5GemmaEncoderModel, "text_encoder")
    assert len(tokenizer("")["input_ids"]) == 1
    assert tokenizer.unk_token_id not in tokenizer(caption_long(_SCENE))["input_ids"]
    short = tokenizer(["red circle"], return_tensors="pt")
    padded = tokenizer(["red circle"], return_tensors="pt", padding="max_length")
    states, longer = (model(**tokens).last_hidden_state for tokens in (short, padded))
    assert torch.allclose(states, longer[:, : states.shape[1]], atol=1e-4)
