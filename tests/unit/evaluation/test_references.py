"""Reference embeddings are computed once, and never taken from a wrong or damaged file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation.features import Extractor, load_extractor
from evaluation.preprocessing import Preprocessing
from evaluation.references import Reference, build_reference


class Counting(Extractor):
    """Embed by channel means and count the calls."""

    def __init__(self, version: str = "v1") -> None:
        preprocess = Preprocessing("inception", 16, 16, (0.0,) * 3, (1.0,) * 3)
        super().__init__("clip", version, 3, preprocess, lambda x: x.mean(dim=(2, 3)), unit_length=False)
        self.calls = 0

    def embed(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        self.calls += 1
        return super().embed(images, batch_size=batch_size)


def build(images: Tensor, extractor: Extractor, cache: Path | None, fingerprint: str = "data") -> Reference:
    return build_reference(images, {"clip": extractor}, cache=cache, fingerprint=fingerprint)


def cached_file(cache: Path) -> Path:
    return next(cache.glob("*.safetensors"))


def test_second_build_embeds_nothing(images: Tensor, tmp_path: Path) -> None:
    first = build(images, Counting(), tmp_path)
    extractor = Counting()
    second = build(images, extractor, tmp_path)
    assert extractor.calls == 0
    assert torch.equal(first.embeddings["clip"], second.embeddings["clip"])
    assert (first.hash, first.count) == (second.hash, 40)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_without_a_cache_nothing_is_written(images: Tensor, tmp_path: Path) -> None:
    with_cache = build(images, Counting(), tmp_path)
    without = build(images, Counting(), None)
    assert without.hash == with_cache.hash
    assert torch.equal(without.embeddings["clip"], with_cache.embeddings["clip"])


def test_every_part_of_the_identity_counts(images: Tensor, tmp_path: Path) -> None:
    changed = images.clone()
    changed[0] = 255 - changed[0]
    found = [
        build(images, Counting(), tmp_path),
        build(images, Counting("v2"), tmp_path),
        build(images, Counting(), tmp_path, fingerprint="other"),
        build(images[:20], Counting(), tmp_path),
        build(changed, Counting(), tmp_path),
    ]
    assert len({reference.hash for reference in found}) == 5
    assert len(list(tmp_path.iterdir())) == 5


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def replace_by_another(file: Path) -> None:
    save_file({"embeddings": torch.zeros(40, 3)}, file, {"key": "another"})


def drop_the_tensor(file: Path) -> None:
    save_file({"others": torch.zeros(40, 3)}, file)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, replace_by_another, drop_the_tensor])
def test_damaged_file_is_set_aside_and_computed_again(images: Tensor, tmp_path: Path, damage) -> None:
    expected = build(images, Counting(), tmp_path)
    file = cached_file(tmp_path)
    damage(file)
    extractor = Counting()
    with pytest.warns(UserWarning, match="set aside and computed again"):
        found = build(images, extractor, tmp_path)
    assert extractor.calls == 1
    assert torch.equal(found.embeddings["clip"], expected.embeddings["clip"])
    assert len(list(tmp_path.glob(f"{file.name}.damaged-*"))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(images, Counting(), tmp_path)


def test_a_failed_write_leaves_no_file(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        build(images, Counting(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_real_extractor_round_trip(weights: dict[str, Path], images: Tensor, tmp_path: Path) -> None:
    extractors = {role: load_extractor(role, weights[role]) for role in ("clip", "dino", "inception")}
    first = build_reference(images, extractors, cache=tmp_path, fingerprint="data")
    second = build_reference(images, extractors, cache=tmp_path, fingerprint="data")
    assert set(second.embeddings) == {"clip", "dino", "inception"}
    assert all(torch.equal(first.embeddings[role], second.embeddings[role]) for role in extractors)


def test_refuses_a_reference_without_identity(images: Tensor) -> None:
    with pytest.raises(ValueError, match="fingerprint must not be empty"):
        build(images, Counting(), None, fingerprint="")
    with pytest.raises(ValueError, match="must hold at least one image, got 0"):
        build(images[:0], Counting(), None)
