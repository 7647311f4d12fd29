"""The batch of a step is a function of (seed, step): order, captions, dropout, posterior draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binomtest

from prx import cache, prepare, recipe
from prx.batches import Batches, read_text
from prx.rng import normal, stream, torch_seed


def batches(world, **changes: Any) -> Batches:
    config = world.config(**changes)
    return Batches(config, world.cache, recipe.build(config))


def captioned(world, dropout: float, captions: dict[str, float]) -> dict[str, Any]:
    text = world.settings()["text"] | {"caption_dropout": dropout}
    return {"text": text, "data": world.settings()["data"] | {"captions": captions}}


def rows_of(made: Batches, column: str, order: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return read_text(made.texts[column], order, made.length)


def matches(found, expected) -> np.ndarray:
    """Tell for each row whether embeddings and mask agree."""
    same = (found[0] == expected[0]).flatten(1).all(1) & (found[1] == expected[1]).all(1)
    return same.numpy()


def test_streams_are_named_by_seed_component_and_step():
    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a/0", 0)]
    draws = [tuple(stream(*name).random(4)) for name in names]
    assert len(set(draws)) == len(names)
    assert tuple(stream(0, "a", 0).random(4)) == draws[0]
    assert torch_seed(0, "a") == torch_seed(0, "a") != torch_seed(0, "b")


def test_streams_are_independent_and_normal():
    first, second = (normal(stream(0, name), 100_000).double() for name in ("a", "b"))
    assert abs(float((first * second).mean())) < 0.02
    assert float(first.mean()) == pytest.approx(0, abs=0.015)
    assert float(first.std()) == pytest.approx(1, abs=0.01)
    assert first.shape == (100_000,)


@pytest.mark.parametrize("size", [8, 10, 48, 100])
def test_every_row_comes_once_an_epoch(world, size):
    made = batches(world, batch_size=size)
    steps = -(-3 * 48 // size)
    visited = np.concatenate([made.order(step) for step in range(steps)])[: 3 * 48].reshape(3, 48)
    assert all(sorted(epoch) == list(range(48)) for epoch in visited)
    assert not np.array_equal(visited[0], visited[1])


def test_order_is_a_function_of_seed_and_step(world):
    made, again, other = batches(world), batches(world), batches(world, seed=1)
    forwards = [made.order(step) for step in range(20)]
    backwards = [again.order(step) for step in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not np.array_equal(forwards[0], other.order(0))


def test_batch_is_a_function_of_seed_and_step(world):
    made, again = batches(world), batches(world)
    again.batch(9)
    first, second = made.batch(4), again.batch(4)
    for name in ("clean", "noise", "t", "text", "mask"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert not torch.equal(getattr(first, name), getattr(made.batch(5), name)), name
    assert not torch.equal(first.noise, batches(world, seed=1).batch(4).noise)


def test_clean_latents_are_posterior_draws_of_the_rows(world):
    made = batches(world)
    mean, std = made.latents.take("moments", made.order(2)).chunk(2, dim=1)
    draws = torch.stack([(made.batch(2).clean - mean) / std])
    assert torch.equal(made.batch(2).clean, made.batch(2).clean)
    assert 0.8 < float(draws.std()) < 1.2
    # The next epoch meets the same images with other draws.
    assert float(((made.batch(8).clean.unsqueeze(1) - made.batch(2).clean) == 0).float().mean()) < 0.01
    mode = batches(world, tokenizer={"use": "autoencoder", "path": str(world.root / "kl"), "sample": False})
    assert torch.equal(mode.batch(2).clean, mode.latents.take("moments", mode.order(2)))


def test_targets_and_latents_belong_to_the_same_rows(world):
    made = batches(world, losses={"repa": world.repa()})
    batch, order = made.batch(3), made.order(3)
    assert torch.equal(batch.targets["repa"], made.targets["repa"].take("tokens", order))
    expected = rows_of(made, "caption_long", order)
    shown = matches((batch.text, batch.mask), expected)
    assert shown.mean() > 0.5
    assert batch.targets["repa"].shape == (8, 16, 16)


def test_weights_decide_how_often_a_caption_is_shown(world):
    made = batches(world, batch_size=48, **captioned(world, 0.0, {"caption_long": 1.0, "caption_short": 3.0}))
    short = total = 0
    for step in range(60):
        batch, order = made.batch(step), made.order(step)
        long_rows, short_rows = (rows_of(made, column, order) for column in ("caption_long", "caption_short"))
        is_short, is_long = (matches((batch.text, batch.mask), rows) for rows in (short_rows, long_rows))
        assert (is_short | is_long).all()
        assert not (is_short & is_long).any()
        short, total = short + int(is_short.sum()), total + len(is_short)
    interval = binomtest(short, total).proportion_ci(0.9999)
    assert interval.low < 0.75 < interval.high
    assert interval.high - interval.low < 0.1


def test_one_caption_column_is_always_that_caption(world):
    fixed = batches(world, **captioned(world, 0.0, {"caption_long": 1.0}))
    weighted = batches(world, **captioned(world, 0.0, {"caption_long": 0.2}))
    for step in range(4):
        batch = fixed.batch(step)
        assert matches((batch.text, batch.mask), rows_of(fixed, "caption_long", fixed.order(step))).all()
        assert torch.equal(weighted.batch(step).text, batch.text)


def test_dropout_rates_zero_one_and_between(world):
    never, always = (batches(world, **captioned(world, rate, {"caption_long": 1.0})) for rate in (0.0, 1.0))
    null = always.null_rows(8)
    for step in range(4):
        batch = always.batch(step)
        assert matches((batch.text, batch.mask), null).all()
        other = never.batch(step)
        assert matches((other.text, other.mask), rows_of(never, "caption_long", never.order(step))).all()
        assert torch.equal(batch.noise, other.noise)
        assert torch.equal(batch.t, other.t)
    some = batches(world, batch_size=48, **captioned(world, 0.25, {"caption_long": 1.0}))
    null = some.null_rows(48)
    found = [matches((batch.text, batch.mask), null) for batch in map(some.batch, range(60))]
    interval = binomtest(int(np.sum(found)), np.size(found)).proportion_ci(0.9999)
    assert interval.low < 0.25 < interval.high
    assert len({tuple(row) for row in found}) > 50


def test_dropout_does_not_choose_among_captions(world):
    made = batches(world, batch_size=48, **captioned(world, 0.5, {"caption_long": 1.0, "caption_short": 1.0}))
    short = kept = 0
    for step in range(60):
        batch, order = made.batch(step), made.order(step)
        is_null = matches((batch.text, batch.mask), made.null_rows(48))
        is_short = matches((batch.text, batch.mask), rows_of(made, "caption_short", order))
        short, kept = short + int(is_short.sum()), kept + int((~is_null).sum())
    interval = binomtest(short, kept).proportion_ci(0.9999)
    assert interval.low < 0.5 < interval.high


def test_dropped_captions_leave_the_cache_alone(world):
    made = batches(world, **captioned(world, 0.5, {"caption_long": 1.0}))
    before = made.texts["caption_long"].take("embeddings", np.arange(48))
    for step in range(6):
        made.batch(step).text.zero_()
    assert torch.equal(made.texts["caption_long"].take("embeddings", np.arange(48)), before)
    assert float(made.null_rows(1)[0].abs().sum()) > 0


def test_null_caption_is_the_encoded_empty_string(world):
    made = batches(world)
    text, mask = made.null_rows(3)
    assert text.shape == (3, made.length, 16)
    assert mask.sum(1).tolist() == [1, 1, 1]
    assert text[0, 0].abs().sum() > 0
    assert not text[:, 1:].any()


def test_masks_count_the_words_of_each_caption(world):
    made = batches(world)
    captions = pq.read_table(world.root / "train")["caption_long"].to_pylist()
    _, mask = rows_of(made, "caption_long", np.arange(48))
    assert mask.sum(1).tolist() == [len(caption.split()) + 1 for caption in captions]
    assert (mask.int().diff(dim=1) <= 0).all()


def test_prompts_are_the_held_out_ones_in_order(world):
    config = world.config()
    caches = prepare.plan(config, world.cache)
    prompts = cache.read(world.cache, caches.prompts.key)
    captions = pq.read_table(world.root / "reference")["caption_long"].to_pylist()
    assert prompts.num == 16
    found = read_text(prompts, np.arange(16), 8)[1].sum(1).tolist()
    assert found == [len(caption.split()) + 1 for caption in captions]


def test_micro_batches_are_consecutive_rows(world):
    batch = batches(world, losses={"repa": world.repa(), "c": {"use": "contrastive"}}).batch(0)
    parts = batch.split(3)
    assert [len(part.clean) for part in parts] == [3, 3, 2]
    for name in ("clean", "noise", "t", "text", "mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.targets["repa"] for part in parts]), batch.targets["repa"])
    assert torch.equal(torch.cat([part.partners["c"] for part in parts]), batch.partners["c"])
    assert parts[0].kept is None
