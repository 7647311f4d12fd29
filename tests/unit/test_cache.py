"""Encoded once, mapped by all: round trips, refusals, and what makes two encodings the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from prx import cache, prepare
from prx.cache import CacheKey
from prx.config import parse_run_config
from prx.errors import DataError, UserError
from prx.teachers import Teacher
from prx.text import TextEncoder

KEY = CacheKey("latents", "encoder-1", "data-1")


def parts(num: int = 23, size: int = 5):
    torch.manual_seed(0)
    moments, mask = torch.randn(num, 2, 3).half(), (torch.rand(num, 4) < 0.5).to(torch.uint8)
    rows = [{"moments": moments[i : i + size], "mask": mask[i : i + size]} for i in range(0, num, size)]
    return moments, mask, iter(rows)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROWS_PER_SHARD", 8)
    moments, mask, rows = parts()
    cache.write(tmp_path, KEY, rows)
    return tmp_path, moments, mask


def test_rows_come_back_over_several_shards(written):
    root, moments, mask = written
    found = cache.read(root, KEY)
    assert found.num == 23
    assert sorted(path.name for path in (root / KEY.digest).glob("*.arrow")) == [
        f"0000{n}.arrow" for n in range(3)
    ]
    index = np.array([22, 0, 7, 8, 15, 16, 7])
    assert torch.equal(found.take("moments", index), moments[index].float())
    assert torch.equal(found.take("mask", index), mask[index])
    assert torch.equal(found.take("moments", np.arange(23)), moments.float())
    assert found.take("moments", np.empty(0, dtype=np.int64)).shape == (0, 2, 3)


def test_shard_length_is_the_writers_not_the_readers(written, monkeypatch):
    root, moments, _ = written
    monkeypatch.setattr(cache, "ROWS_PER_SHARD", 1000)
    assert torch.equal(cache.read(root, KEY).take("moments", np.array([20])), moments[20:21].float())


def test_rows_that_are_taken_may_be_changed(written):
    root, moments, _ = written
    found = cache.read(root, KEY)
    found.take("moments", np.array([0])).zero_()
    assert torch.equal(found.take("moments", np.array([0])), moments[:1].float())


@pytest.mark.parametrize("damage", ["missing", "short", "overwritten"])
def test_damaged_shard_is_refused_with_its_path(written, damage):
    root, *_ = written
    file = root / KEY.digest / "00001.arrow"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "short" else bytes(len(content)))
    with pytest.raises(DataError) as caught:
        cache.read(root, KEY)
    assert str(caught.value).startswith(f"{file} is damaged")
    assert f"remove {root / KEY.digest} to encode it again" in str(caught.value)


def test_damaged_or_foreign_manifest_is_refused(written):
    root, *_ = written
    file = root / KEY.digest / "manifest.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"key": ["latents", "encoder-2", "data-1"]}))
    with pytest.raises(DataError, match=r"belongs to .*encoder-2.* expected .*encoder-1"):
        cache.read(root, KEY)
    file.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is missing or damaged"):
        cache.read(root, KEY)


def test_half_written_folders_are_ignored_and_replaced(written, tmp_path):
    root, moments, _ = written
    (root / KEY.digest / "manifest.json").unlink()
    assert not cache.exists(root, KEY)
    with pytest.raises(DataError, match="missing or damaged"):
        cache.read(root, KEY)
    cache.write(root, KEY, parts()[2])
    assert torch.equal(cache.read(root, KEY).take("moments", np.arange(23)), moments.float())


def test_failing_encoder_leaves_nothing(tmp_path):
    def broken():
        yield from list(parts()[2])[:2]
        raise DataError("row 10 is no image")

    with pytest.raises(DataError, match="row 10"):
        cache.write(tmp_path, KEY, broken())
    assert not cache.exists(tmp_path, KEY)
    assert list(tmp_path.iterdir()) == []


def test_later_writer_of_the_same_rows_keeps_the_first(written):
    root, *_ = written
    before = (root / KEY.digest / "00000.arrow").stat().st_ino
    cache.write(root, KEY, parts()[2])
    assert (root / KEY.digest / "00000.arrow").stat().st_ino == before
    assert [path.name for path in root.iterdir()] == [KEY.digest]


def test_writers_that_finish_at_once_do_not_remove_each_others_rows(tmp_path, monkeypatch):
    """Here the other one finishes between the last look and the rename."""
    real, folder = cache._publish, tmp_path / KEY.digest

    def slow(partial, root, key):
        monkeypatch.setattr(cache, "_publish", real)
        cache.write(root, key, parts()[2])
        held.append((folder / "00000.arrow").stat().st_ino)
        real(partial, root, key)

    held: list[int] = []
    monkeypatch.setattr(cache, "_publish", slow)
    cache.write(tmp_path, KEY, parts()[2])
    assert [(folder / "00000.arrow").stat().st_ino] == held
    assert [path.name for path in tmp_path.iterdir()] == [KEY.digest]


def test_shards_are_cut_by_their_size_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 100)  # a row has 6 halves and 4 bytes
    moments, mask, rows = parts()
    cache.write(tmp_path, KEY, rows)
    assert len(list((tmp_path / KEY.digest).glob("*.arrow"))) == 4
    assert torch.equal(cache.read(tmp_path, KEY).take("moments", np.arange(23)), moments.float())
    assert torch.equal(cache.read(tmp_path, KEY).take("mask", np.arange(23)), mask)


def jobs(config, root) -> dict[str, str]:
    return {job.what: job.key.digest for job in prepare.plan(config, root).all()}


def test_keys_follow_what_an_encoding_depends_on(world):
    base = world.config(losses={"repa": world.repa()})
    first = jobs(base, world.cache)
    same = world.config(losses={"repa": world.repa(layer=1)}, seed=3, steps=9, precision="bf16_master")
    assert jobs(same, world.cache) == first
    data = world.settings()["data"]
    fewer = parse_run_config(world.settings(data=data | {"num_train": 20}, losses={"repa": world.repa()}))
    changed = {what for what, digest in jobs(fewer, world.cache).items() if digest != first[what]}
    assert {what.partition(" (")[0] for what in changed} == {"latents", "captions", "teacher"}
    shorter = parse_run_config(world.settings(text=world.settings()["text"] | {"max_tokens": 4}))
    changed = {what for what, digest in jobs(shorter, world.cache).items() if digest != first[what]}
    assert {what.partition(" (")[0] for what in changed} == {"captions", "prompts", "the empty caption"}


def test_second_preparation_encodes_nothing(world, tmp_path):
    config = parse_run_config(world.settings(losses={"a": world.repa(), "b": world.repa(layer=1)}))
    seen: list[tuple[str, int, int]] = []
    prepare.prepare([config, config], tmp_path, lambda *report: seen.append(report))
    assert {what.partition(" (")[0] for what, *_ in seen} == {
        *("latents", "captions", "prompts", "the empty caption", "teacher")
    }
    finished = [what for what, done, total in seen if done == total]
    assert len(finished) == len(set(finished)) == 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    prepare.prepare([config], tmp_path, lambda *report: pytest.fail(f"encoded again: {report}"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_limit_counts_all_encodings_together(world, tmp_path):
    config = parse_run_config(world.settings(losses={"repa": world.repa()}))
    sizes = [job.num * job.row_values * 2 / 1e9 for job in prepare.plan(config, tmp_path).all()]
    limit = (sum(sizes) + max(sizes)) / 2
    assert max(sizes) < limit < sum(sizes)
    small = parse_run_config(world.settings(losses={"repa": world.repa()}, cache={"max_gb": limit}))
    with pytest.raises(
        DataError, match=r"^cache\.max_gb: the encodings would take .* at most .* are allowed$"
    ):
        prepare.prepare([small], tmp_path / "small", lambda *report: None)
    assert not (tmp_path / "small").exists()


def test_values_beyond_half_precision_are_refused():
    with pytest.raises(DataError, match=r"the latent has values beyond the range of float16"):
        prepare._half(torch.tensor([7e4]), "the latent")


def test_cached_rows_are_what_the_encoders_give(world):
    config = world.config(losses={"repa": world.repa()})
    caches = prepare.plan(config, world.cache)
    images = next(prepare._images(config, prepare.datasets.train_set(config.data, world.cache)))
    tokens = Teacher(str(world.root / "dinov2"), torch.device("cpu")).tokens(images, (4, 4))
    stored = cache.read(world.cache, caches.targets["repa"][0].key).take("tokens", np.arange(48))
    assert torch.equal(stored, tokens.half().float())
    null, mask = TextEncoder(str(world.root / "text"), 8, torch.device("cpu")).encode([""], 1)
    found = cache.read(world.cache, caches.null.key)
    assert torch.equal(found.take("embeddings", np.zeros(1, dtype=int)), null.half().float())
    assert mask.tolist() == [[True]]


@pytest.mark.parametrize("model", ["kl", "text", "dinov2"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "incomplete"])
def test_models_that_cannot_be_loaded_whole_are_refused(world, tmp_path, model, damage):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / model
    shutil.copytree(world.root / model, folder)
    file = next(folder.glob("*.safetensors"))
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        tensors = load_file(file)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, file, metadata={"format": "pt"})
    changes = {
        "kl": {"tokenizer": {"use": "autoencoder", "path": str(folder)}},
        "text": {"text": {"encoder": str(folder), "max_tokens": 8}},
        "dinov2": {"losses": {"repa": world.repa(teacher=str(folder))}},
    }[model]
    rule = {"missing": "is missing", "truncated": "is damaged", "incomplete": "the weights lack 1 tensors"}[damage]
    with pytest.raises(UserError, match=rule) as caught:
        prepare.prepare(
            [parse_run_config(world.settings(**changes))], tmp_path / "cache", lambda *report: None
        )
    assert str(folder) in str(caught.value)
