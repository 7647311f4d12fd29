"""Subsets, mixtures of data sets, and a second embedded split: what is drawn, what is refused."""

from __future__ import annotations

import hashlib
import io
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from prx import order, prepare, recipe
from prx.batches import Batches
from prx.config import config_id, parse_run_config
from prx.config_data import DataConfig
from prx.embedded.dataset import split_folder
from prx.errors import ConfigError, DataError
from prx.order import Order, chosen
from tests.helpers import running, same, weights
from tests.tiny import write_images


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
    """A second training set: 20 rows, every long caption of two words."""
    folder = tmp_path_factory.mktemp("other") / "data"
    write_images(folder, 20, seed=7)
    rows = pq.read_table(folder / "part-00000.parquet").to_pydict()
    rows["caption_long"] = [f"{text.split()[0]} on" for text in rows["caption_long"]]
    pq.write_table(pa.table(rows), folder / "part-00000.parquet")
    return folder


def settings(world, **changes: Any) -> dict[str, Any]:
    return world.settings()["data"] | changes


def mixture(world, other, first: float = 1.0, second: float = 3.0, **changes: Any) -> dict[str, Any]:
    one = {"train": str(world.root / "train"), "weight": first}
    two = {"train": str(other), "weight": second}
    return settings(world, train=None, mixture={"plain": one, "short": two}, **changes)


def batches(world, data: dict[str, Any], **changes: Any) -> Batches:
    config = world.config(data=data, **changes)
    return Batches(config, world.cache, recipe.build(config))


def order_of(data: dict[str, Any], sizes: list[int], seed: int = 0, batch_size: int = 8) -> Order:
    return Order(DataConfig.model_validate(data), sizes, seed=seed, batch_size=batch_size)


TWO = {"mixture": {"a": {"train": "a", "weight": 1.0}, "b": {"train": "b", "weight": 3.0}}}


def test_a_subset_reads_the_encodings_of_all_rows(world):
    whole = world.config(data=settings(world))
    part = world.config(data=settings(world, subset={"share": 0.25}))
    jobs = [[job.key.digest for job in prepare.plan(config, world.cache).all()] for config in (whole, part)]
    assert jobs[0] == jobs[1]
    assert config_id(whole) != config_id(part)


def test_a_subset_is_visited_whole_every_epoch(world):
    made = batches(world, settings(world, subset={"share": 0.25}))
    visited = np.concatenate([made.order(step) for step in range(6)]).reshape(4, 12)
    expected = chosen(made.config.data, "data.train", 48)
    assert all(np.array_equal(np.sort(epoch), expected) for epoch in visited)
    assert not np.array_equal(visited[0], visited[1])


def test_subsets_of_one_seed_are_nested_and_those_of_another_differ():
    def rows(**subset: Any) -> set[int]:
        return set(chosen(DataConfig.model_validate({"subset": subset}), "data.train", 1000).tolist())

    assert rows(rows=10) < rows(rows=250) == rows(share=0.25) < rows(share=1.0) == set(range(1000))
    assert len(rows(share=0.25) & rows(share=0.25, seed=1)) < 100
    assert len(rows(share=1e-6)) == 1


def test_the_subset_does_not_follow_the_training_seed():
    data = {"subset": {"rows": 16}}
    visited = [np.sort(np.concatenate([order_of(data, [64], seed).rows(s) for s in (0, 1)])) for seed in (0, 1)]
    assert np.array_equal(*visited)


def test_without_a_mixture_rows_are_those_of_one_permutation_an_epoch():
    made = order_of({}, [48])
    first = np.concatenate([made.rows(step) for step in range(6)])
    assert np.array_equal(first, order.stream(0, "order", 0).permutation(48))


def test_sources_follow_their_weights():
    made = order_of(TWO, [50, 70], batch_size=64)
    drawn = np.concatenate([made.sources(step) for step in range(100)])
    interval = binomtest(int(drawn.sum()), len(drawn)).proportion_ci(0.9999)
    assert interval.low < 0.75 < interval.high
    assert interval.high - interval.low < 0.05
    rows = np.concatenate([made.rows(step) for step in range(100)])
    assert np.array_equal(rows >= 50, drawn == 1)


def test_every_set_of_a_mixture_has_epochs_of_its_own(monkeypatch):
    monkeypatch.setattr(order, "BLOCK", 4)
    made = order_of(TWO, [5, 30])
    rows = np.concatenate([made.rows(step) for step in range(40)])
    for low, high in ((0, 5), (5, 35)):
        mine, size = rows[(rows >= low) & (rows < high)], high - low
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(epochs) > 5
        assert all(np.array_equal(np.sort(epoch), np.arange(low, high)) for epoch in epochs)


def test_mixed_rows_are_a_function_of_seed_and_step(monkeypatch):
    monkeypatch.setattr(order, "BLOCK", 4)
    made, again = order_of(TWO, [5, 30]), order_of(TWO, [5, 30])
    forwards = [made.rows(step) for step in range(20)]
    backwards = [again.rows(step) for step in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert np.array_equal(order_of(TWO, [5, 30]).rows(17), forwards[17])
    assert not np.array_equal(order_of(TWO, [5, 30], seed=1).rows(0), forwards[0])


def test_mixed_batches_read_the_rows_of_both_sets(world, other):
    made = batches(world, mixture(world, other), losses={"repa": world.repa()}, batch_size=16)
    config = world.config(data=settings(world, train=str(other)), losses={"repa": world.repa()})
    alone = Batches(config, world.cache, recipe.build(config))
    rows = made.order(3)
    second = rows >= 48
    assert 0 < second.sum() < 16
    batch = made.batch(3)
    moments = made.latents.take("moments", rows)
    assert torch.equal(moments[torch.from_numpy(second)], alone.latents.take("moments", rows[second] - 48))
    expected = alone.targets["repa"].take("tokens", rows[second] - 48)
    assert torch.equal(batch.targets["repa"][torch.from_numpy(second)], expected)
    shown = batch.mask[torch.from_numpy(second & (made._captions(3)[1] == 0))]
    assert shown.sum(1).tolist() == [3] * len(shown)
    assert batch.text.shape[1] == made.length > 3


def test_mixture_and_subset_train_and_resume(world, other, tmp_path):
    data = mixture(world, other, subset={"share": 0.5}, captions={"caption_long": 1.0, "caption_short": 1.0})
    changes = {"data": data, "losses": {"repa": world.repa()}, "micro_batch": 4}
    with running(world, tmp_path, **changes) as trainer:
        trainer.advance(2)
        trainer.save()
        following = trainer.advance(4).loss
        trained = weights(trainer)
    with running(world, tmp_path, **changes) as trainer:
        assert trainer.resume() == 2
        assert trainer.advance(4).loss == following
        assert same(weights(trainer), trained)


@pytest.mark.parametrize(
    ("tokenizer", "patch"), [({"path": "kl"}, 1), ({"path": "kl", "sample": False}, 1), ({"use": "pixels"}, 4)]
)
def test_the_limit_knows_what_latents_take(world, tokenizer, patch):
    named = {"path": str(world.root / tokenizer["path"])} if "path" in tokenizer else {}
    config = world.config(
        tokenizer={"use": "autoencoder"} | tokenizer | named,
        denoiser={"width": 32, "depth": 2, "heads": 2, "patch_size": patch},
    )
    (job,) = prepare.plan(config, world.cache).latents
    shape = prepare.read(world.cache, [job]).take("moments", np.arange(job.num)).shape
    assert job.num * job.row_values == int(np.prod(shape))


CONTRADICTIONS = [
    ({"mixture": {}}, "data.mixture: "),
    ({"train": "x", "mixture": TWO["mixture"]}, "data: must have either train or mixture (the other one null)"),
    ({"train": None}, "data: must have either train or mixture (the other one null), got train None"),
    ({"mixture": {"a": {"train": "x", "weight": 0}}}, "data.mixture.a.weight: must be greater than 0, got 0"),
    ({"mixture": {"a": {"weight": 1}}}, "data.mixture.a.train: is required"),
    ({"mixture": {"a": {"train": "x", "wieght": 1}}}, "data.mixture.a.wieght: unknown key; must be one of "),
    ({"mixture": TWO["mixture"], "num_train": 4}, "data: num_train must be null with a mixture"),
    ({"mixture": TWO["mixture"], "subset": {"rows": 4}}, "data: subset must have a share, not rows, with a mixture"),
    ({"subset": {}}, "data.subset: must have either share or rows, got share None and rows None"),
    ({"subset": {"share": 0.5, "rows": 5}}, "data.subset: must have either share or rows, got share 0.5 and rows 5"),
    ({"subset": {"share": 0}}, "data.subset.share: must be greater than 0, got 0"),
    ({"subset": {"share": 1.5}}, "data.subset.share: must be less than or equal to 1, got 1.5"),
    ({"captions": {}}, "data.captions: "),
    ({"captions": {"caption_long": 0.0}}, "data.captions.caption_long: must be greater than 0, got 0.0"),
]


@pytest.mark.parametrize(("data", "message"), CONTRADICTIONS, ids=[str(i) for i in range(len(CONTRADICTIONS))])
def test_contradictions_are_refused_with_path_and_value(data, message):
    with pytest.raises(ConfigError) as caught:
        parse_run_config({"data": data})
    assert str(caught.value).startswith(message)


def refused(world, data: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        prepare.plan(parse_run_config(world.settings(data=data)), world.cache)
    return str(caught.value)


def test_bad_sets_of_a_mixture_are_named(world, other, tmp_path):
    data = mixture(world, other)
    data["mixture"]["short"]["train"] = str(tmp_path / "nowhere")
    assert refused(world, data).startswith("data.mixture.short.train: must be an existing folder of parquet files")
    data["mixture"]["short"] = {"train": str(other), "num_train": 21}
    assert refused(world, data) == f"data.mixture.short.train: 21 rows are asked for, {other} has 20"
    folder = shutil.copytree(other, tmp_path / "narrow")
    rows = pq.read_table(folder / "part-00000.parquet").drop_columns(["caption_long"])
    pq.write_table(rows, folder / "part-00000.parquet")
    data["mixture"]["short"] = {"train": str(folder)}
    assert "narrow/part-00000.parquet has no such column; must be one of image, " in refused(world, data)
    data["mixture"]["short"] = {"train": "embedded:photos"}
    assert refused(world, data).endswith("is endless; set how many rows, as data.mixture.short.num_train")


def test_a_subset_larger_than_the_data_is_refused(world):
    message = refused(world, settings(world, subset={"rows": 49}))
    assert message == "data.subset.rows: 49 rows are asked for, data.train has 48"


def pictures(name: str, root) -> tuple[np.ndarray, list[str], list[str]]:
    rows = pq.read_table(split_folder(name, 64, root)).to_pydict()
    images = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in rows["image"]])
    return images.astype(np.float64), rows["caption_long"], rows["attributes"]


def test_older_splits_are_as_they_were(tmp_path):
    """Encodings and trained weights depend on them."""
    digests = {}
    for name in ("train", "reference"):
        images, captions, attributes = pictures(name, tmp_path)
        content = images.astype(np.uint8).tobytes() + "\n".join([*captions, *attributes]).encode()
        digests[name] = hashlib.blake2b(content, digest_size=8).hexdigest()
    assert digests == {"train": "9563286215ddbd6f", "reference": "0d4eae118fc75e6a"}


def test_photos_are_scenes_with_other_pixels(tmp_path):
    photos, captions, _ = pictures("photos", tmp_path)
    again = pictures("photos", tmp_path / "again")[0]
    assert np.array_equal(photos, again)
    train, train_captions, _ = pictures("train", tmp_path)
    assert set(captions).isdisjoint(train_captions)
    assert {word for text in captions for word in text.split()} <= {w for t in train_captions for w in t.split()}
    # A drawn scene has flat regions: most neighbouring pixels are equal. A photograph has none.
    flat = [float((np.diff(images, axis=2) == 0).all(axis=-1).mean()) for images in (train, photos)]
    assert flat[0] > 0.6
    assert flat[1] < 0.05
    assert photos.mean() < train.mean()
