"""Attention alignment: the teacher's maps by hand, bounds of the cross-entropy, who gets a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_prx import apply_rope, get_image_ids
from torch import Tensor

from prx import recipe
from prx.config import parse_run_config
from prx.denoiser import walk
from prx.interfaces import FlowSample, RunShape, StepView, Tap
from prx.teachers import Teacher
from prx.techniques.attention_alignment import AttentionAlignment
from prx.techniques.velocity import Velocity
from prx.train_step import StepBatch, TrainStep
from tests.helpers import random_denoiser, running

HEADS, TOKENS = 2, 16
SHAPE = RunShape(channels=3, latent_size=8, depth=4, grid=(4, 4), heads=HEADS)


def term(**settings) -> AttentionAlignment:
    given = {"teacher": "none", "student_layers": [0, 2], "teacher_layers": [0, 0]} | settings
    return AttentionAlignment("term", AttentionAlignment.Config(use="attention_alignment", **given), SHAPE)


def view(taps: dict[int, Tap], target: Tensor) -> StepView:
    empty = torch.zeros(len(target), 1, 1, 1)
    sample = FlowSample(empty, empty, torch.zeros(len(target)), empty)
    return StepView(sample, empty, taps, attention={"term": target})


def value(alignment: AttentionAlignment, target: Tensor, *logits: Tensor) -> Tensor:
    layers = alignment.config.student_layers
    return alignment(view({n: Tap(torch.empty(0), None, rows) for n, rows in zip(layers, logits, strict=True)}, target))


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, TOKENS, TOKENS, generator=torch.Generator().manual_seed(seed)) * 2


def entropy(target: Tensor) -> Tensor:
    return -(target * target.log()).sum(-1).mean()


def test_cross_entropy_is_the_teachers_entropy_at_agreement_and_more_elsewhere():
    logits = maps(3, 2, HEADS)
    target = logits.softmax(-1)
    agreed = value(term(), target, logits[:, 0], logits[:, 1] + 7)
    torch.testing.assert_close(agreed, entropy(target))
    other = value(term(), target, logits[:, 0], maps(3, HEADS, seed=1))
    assert other > agreed + 0.1
    torch.testing.assert_close(value(term(), target, logits[:, 0] * 0, logits[:, 1] * 0), torch.tensor(TOKENS).log())


def test_mean_goes_over_samples_heads_queries_and_pairs():
    target, first, second = maps(3, 2, HEADS).softmax(-1), maps(3, HEADS, seed=1), maps(3, HEADS, seed=2)
    parts = [-(target[:, n] * x.log_softmax(-1)).sum(-1).mean() for n, x in enumerate((first, second))]
    torch.testing.assert_close(value(term(), target, first, second), (parts[0] + parts[1]) / 2)
    swapped = term(student_layers=[2, 0])
    torch.testing.assert_close(value(swapped, target, first, second), value(term(), target, first, second))


def test_rows_that_half_precision_left_short_of_one_keep_the_bound():
    logits = maps(3, 2, HEADS)
    target = logits.softmax(-1).half().float() * 0.99
    exact = target / target.sum(-1, keepdim=True)
    torch.testing.assert_close(value(term(), target, *exact.log().unbind(1)), entropy(exact))


@pytest.mark.parametrize(("student", "teacher", "heads"), [(4, 2, None), (2, 4, None), (4, 4, 2)])
def test_heads_beyond_the_compared_ones_are_free(student, teacher, heads):
    single = term(student_layers=[1], teacher_layers=[0], heads=heads)
    logits, target = maps(2, student, seed=1).requires_grad_(), maps(2, 1, teacher).softmax(-1)
    value(single, target, logits).backward()
    assert logits.grad[:, :2].abs().sum((0, 2, 3)).gt(0).all()
    assert not logits.grad[:, 2:].any()


def test_logits_are_those_of_the_block_without_its_text_keys():
    """The block's own attention, over all keys, is rebuilt from its output; cut to image keys it is the student's."""
    model, seen = random_denoiser(), {}
    attention = model.blocks[1].attention
    attention.to_out[0].register_forward_pre_hook(lambda _, given: seen.__setitem__("mixed", given[0]))
    for name in ("img_qkv_proj", "txt_kv_proj"):
        getattr(attention, name).register_forward_hook(lambda _, __, out, n=name: seen.__setitem__(n, out))
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    logits = walk(model, *inputs, attended={1})[1][1].attention
    query, key, mixed = seen["img_qkv_proj"].unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    text_key, text_mixed = seen["txt_kv_proj"].unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
    place = model.pe_embedder(get_image_ids(2, 8, 8, 2, torch.device("cpu")))
    query, key = apply_rope(attention.norm_q(query), place), apply_rope(attention.norm_k(key), place)
    keys = torch.cat([attention.norm_added_k(text_key), key], dim=2)
    joint = (query @ keys.transpose(-1, -2) / (32 // HEADS) ** 0.5).softmax(-1)
    rebuilt = (joint @ torch.cat([text_mixed, mixed], dim=2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(rebuilt, seen["mixed"], rtol=1e-4, atol=1e-5)
    cut = joint[..., 5:] / joint[..., 5:].sum(-1, keepdim=True)
    torch.testing.assert_close(logits.softmax(-1), cut, rtol=1e-4, atol=1e-6)


def aligned_step() -> tuple[TrainStep, StepBatch]:
    flow = Velocity(Velocity.Config(use="velocity"))
    module = TrainStep(random_denoiser(), flow, {"term": term()}, grid=(4, 4))
    torch.manual_seed(3)
    clean, noise, mask = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.ones(2, 5, dtype=torch.bool)
    attention = {"term": maps(2, 2, HEADS).softmax(-1)}
    return module, StepBatch(clean, noise, torch.rand(2), torch.randn(2, 5, 8), mask, attention=attention)


def test_gradient_ends_at_the_queries_and_keys_of_the_last_block():
    module, batch = aligned_step()
    named = dict(module.denoiser.named_parameters())
    found = torch.autograd.grad(
        module.term_and_objective(batch, "term")[0], list(named.values()), materialize_grads=True
    )
    gradient = dict(zip(named, found, strict=True))
    reached = {name for name, value in gradient.items() if value.any()}
    assert not any(name.startswith(("blocks.3.", "final_layer.")) for name in reached)
    last = {name.removeprefix("blocks.2.") for name in reached if name.startswith("blocks.2.")}
    assert last == {
        "attention.img_qkv_proj.weight", "attention.norm_q.weight", "attention.norm_k.weight",
        "modulation.lin.weight", "modulation.lin.bias",
    }  # fmt: skip
    query, key, mixed = gradient["blocks.2.attention.img_qkv_proj.weight"].chunk(3)
    assert query.any()
    assert key.any()
    assert not mixed.any()
    before = {name for name in named if name.startswith(("blocks.0.", "blocks.1.", "img_in.", "txt_in."))}
    assert before <= reached


def test_absent_term_leaves_the_step_bitwise_alone():
    module, batch = aligned_step()
    bare = TrainStep(module.denoiser, module.objective, {}, grid=(4, 4))
    without, terms = module(replace(batch, weights={}, attention={}))
    assert terms.keys() == {"objective"}
    assert torch.equal(without, bare(batch)[0])
    assert not torch.equal(module(batch)[0], without)


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_teachers_maps_by_hand(world, name):
    teacher, seen = Teacher(str(world.root / name), torch.device("cpu"), attention=True), {}
    modules = dict(teacher.model.named_modules())
    path = next(key for key in modules if key.endswith("layer.0.attention"))
    with torch.no_grad():
        for side in ("q_proj", "k_proj"):  # fresh weights attend to everything alike
            modules[f"{path}.{side}"].weight.mul_(60)
    watched = {"q": f"{path}.q_proj", "k": f"{path}.k_proj"} | ({"rope": "rope_embeddings"} if name == "dinov3" else {})
    for key, module in watched.items():
        modules[module].register_forward_hook(lambda _, __, out, k=key: seen.__setitem__(k, out))
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = teacher.attention(images, (4, 4), [0])
    query, key = (seen[side].unflatten(-1, (2, 8)).transpose(1, 2)[:, :, 3:] for side in ("q", "k"))  # CLS, 2 registers
    if "rope" in seen:
        cos, sin = seen["rope"]
        query, key = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (query, key))
    expected = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
    assert found.shape == (2, 1, 2, TOKENS, TOKENS)
    assert expected.max() > 0.15
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 1, 2, TOKENS))


def settings_of(world, **changes):
    given = {"use": "attention_alignment", "teacher": str(world.root / "dinov2")}
    return given | {"student_layers": [0, 1], "teacher_layers": [0, 0]} | changes


RULES = [
    ({"student_layers": [0, 2]}, "student_layers must be in 0..1 (denoiser.depth is 2), got 2"),
    ({"teacher_layers": [0]}, "teacher_layers must be as many as student_layers (2), got 1"),
    ({"teacher_layers": [0, 1]}, "teacher_layers must be in 0..0 (the teacher has 1 blocks), got 1"),
    ({"heads": 3}, "heads must be in 1..2 (the student has 2, the teacher 2), got 3"),
    ({"stop_when": {"block": 2}}, "stop_when.block must be in 0..1, where the term has a gradient, got 2"),
]


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[message.split()[0] for _, message in RULES])
def test_rules(world, changes, message):
    config = parse_run_config(world.settings(losses={"a": settings_of(world, **changes)}))
    found = [f"{problem.path.removeprefix('losses.a.')} {problem.message}" for problem in recipe.problems(config)]
    assert found == [message]


def test_routed_layers_are_refused():
    config = term().config
    found = AttentionAlignment.problems(config, replace(SHAPE, route=(1, 2)))
    rule = "must be outside the routed blocks 1..2, which see no whole grid, got [2]"
    assert found == [("student_layers", rule)]
    assert AttentionAlignment.problems(config, replace(SHAPE, route=(1, 1))) == []


@pytest.mark.parametrize("teacher", ["dinov2", "dinov3"])
def test_it_trains_beside_repa(world, tmp_path, teacher):
    part = settings_of(world, teacher=str(world.root / teacher))
    with running(world, tmp_path, losses={"maps": part, "repa": world.repa()}, micro_batch=4) as trainer:
        assert trainer.batches.batch(0).attention["maps"].shape == (8, 2, 2, TOKENS, TOKENS)
        first = trainer.advance(2).terms
        assert first.keys() == {"objective", "maps", "repa"}
        assert trainer.advance(12).terms["maps"] < first["maps"]
