"""Attribute reading and its score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ResNetForImageClassification

from evaluation.adherence import adherence, adherence_by_attribute, load_reader

WANTED = [{"a": "x", "b": "y"}, {"a": "x", "b": "z"}, {"a": "w"}]
FOUND = [{"a": "x", "b": "y"}, {"a": "v", "b": "z"}, {"a": "v", "b": "y"}]


def test_share_of_attributes_averaged_over_images() -> None:
    mean, se = adherence(FOUND, WANTED)
    assert mean == pytest.approx(0.5)
    assert se == pytest.approx(np.std([1, 0.5, 0], ddof=1) / np.sqrt(3))


@pytest.mark.parametrize("value", ["x", "-"])
def test_images_that_all_agree_leave_doubt_that_shrinks_with_their_number(value: str) -> None:
    few, many = (adherence([{"a": value}] * count, [{"a": "x"}] * count) for count in (3, 90))
    assert few[0] == many[0] == (1.0 if value == "x" else 0.0)
    assert 0.1 < few[1] < 0.3
    assert 0.0 < many[1] < 0.03


def test_share_by_attribute_counts_only_images_that_want_it() -> None:
    assert adherence_by_attribute(FOUND, WANTED) == {"a": pytest.approx(1 / 3), "b": pytest.approx(1)}


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (FOUND, WANTED[:2], "must have equal lengths, got 3 and 2"),
        (FOUND[:1], WANTED[:1], "must have at least 2 images, got 1"),
        (FOUND[:2], [{}, {"a": "x"}], "must name an attribute for every image, got none for image 0"),
        (FOUND[:2], [{"a": "x"}, {"size": "big"}], "attributes of image 1 must be among a, b, got size"),
    ],
)
def test_refuses_what_cannot_be_scored(found: list, wanted: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adherence(found, wanted)


def test_reads_the_best_value_of_each_attribute(weights: dict[str, Path], images: Tensor) -> None:
    reader = load_reader(weights["reader"])
    model = ResNetForImageClassification.from_pretrained(weights["reader"]).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    with torch.no_grad():
        logits = model((images.float() / 255 - mean[:, None, None]) / std[:, None, None]).logits
    colours, shapes = ["red", "blue"], ["circle", "square", "none"]
    expected = [
        {"background": colours[int(row[:2].argmax())], "shape": shapes[int(row[2:].argmax())]}
        for row in logits
    ]
    assert reader.read(images, batch_size=9) == expected
    assert reader.read(images[:0]) == []
    assert adherence(reader.read(images), expected)[0] == 1.0


def test_refuses_labels_without_a_value(weights: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(weights["reader"], tmp_path / "reader")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["1"] = "blue"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"id2label\.1 must read attribute=value, got 'blue'"):
        load_reader(folder)


def test_refuses_another_model_type(weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="model_type must be resnet, got 'dinov2_with_registers'"):
        load_reader(weights["dino"])
