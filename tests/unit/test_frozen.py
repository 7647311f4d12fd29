"""Frozen text encoder and teachers: what is padded, cut, prefixed and in which order tokens come."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from prx import images, teachers, text
from prx.errors import UserError
from prx.teachers import Teacher, teacher_width
from prx.text import TextEncoder, text_width

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(world):
    return TextEncoder(str(world.root / "text"), 8, CPU)


def test_padding_does_not_change_an_embedding(encoder):
    short, mask = encoder.encode(["red circle", "a green square on grey"], 6)
    longer, wider = encoder.encode(["red circle", "a green square on grey"], 8)
    assert torch.equal(mask, wider[:, :6])
    assert not wider[:, 6:].any()
    torch.testing.assert_close(short[mask], longer[wider], rtol=1e-5, atol=1e-5)
    alone, _ = encoder.encode(["red circle"], 3)
    torch.testing.assert_close(alone[0], short[0, :3], rtol=1e-5, atol=1e-5)


def test_long_captions_are_cut(encoder):
    caption = " ".join(["red"] * 30)
    assert encoder.lengths([caption, "red", ""]) == [8, 2, 1]
    embeddings, mask = encoder.encode([caption], 99)
    assert embeddings.shape == (1, 8, 16)
    assert mask.all()


def test_words_and_their_order_matter(encoder):
    embeddings, _ = encoder.encode(["red circle", "circle red", "blue circle"], 3)
    assert not torch.allclose(embeddings[0, 0], embeddings[1, 1], atol=1e-4)
    assert not torch.allclose(embeddings[0], embeddings[2], atol=1e-4)


def test_tokens_see_what_comes_after_them(encoder):
    embeddings, mask = encoder.encode(["red green blue", "red green circle"], 4)
    assert mask.all()
    assert not torch.allclose(embeddings[0, 0], embeddings[1, 0], atol=1e-4)


def test_whole_models_give_their_encoder(world, tmp_path):
    """The published weights hold a decoder too; the tiny ones only an encoder."""
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    folder = shutil.copytree(world.root / "text", tmp_path / "whole")
    config = T5GemmaConfig.from_pretrained(folder)
    torch.manual_seed(1)
    whole = T5GemmaForConditionalGeneration(config).eval()
    whole.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["is_encoder_decoder"]
    encoder = TextEncoder(str(folder), 8, CPU)
    found, mask = encoder.encode(["red circle", "a green square on grey"], 6)
    ids = encoder.tokenizer(["red circle", "a green square on grey"], padding="max_length", max_length=6)
    with torch.no_grad():
        expected = whole.get_encoder()(torch.tensor(ids["input_ids"]), attention_mask=mask.long())
    torch.testing.assert_close(found[mask], expected.last_hidden_state[mask])
    assert text_width(str(folder)) == 16


def test_width_and_identity_of_the_text_encoder(world):
    path = str(world.root / "text")
    assert text_width(path) == 16
    assert text.identity(path, 8) == text.identity(path, 8) != text.identity(path, 4)


@pytest.fixture(params=["dinov2", "dinov3"])
def teacher(request, world):
    return Teacher(str(world.root / request.param), CPU)


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_tokens_are_the_patches_of_the_last_layer(teacher, pictures):
    tokens = teacher.tokens(pictures, (4, 4))
    pixels = images.for_teacher(pictures, (16, 16), teacher.mean, teacher.std)
    everything = teacher.model(pixel_values=pixels).last_hidden_state
    assert everything.shape[1] == 16 + 1 + 2  # class token and two registers come first
    assert torch.equal(tokens, everything[:, 3:])
    assert not tokens.requires_grad
    assert teacher.width == tokens.shape[-1] == 16


def test_tokens_run_row_by_row(world, pictures):
    """Change one corner: the token of that place changes most."""
    teacher = Teacher(str(world.root / "dinov2"), CPU)
    base = teacher.tokens(pictures, (4, 4))
    for row, column in ((0, 3), (2, 1)):
        changed = pictures.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
        difference = (teacher.tokens(changed, (4, 4)) - base).norm(dim=-1)
        assert difference.argmax(dim=1).tolist() == [4 * row + column] * 2


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (4, 4)])
def test_one_token_for_each_cell_of_the_grid(teacher, pictures, grid):
    assert teacher.tokens(pictures, grid).shape == (2, grid[0] * grid[1], 16)


def test_statistics_beside_the_weights_are_used(world, tmp_path, pictures):
    folder = shutil.copytree(world.root / "dinov2", tmp_path / "own")
    plain = Teacher(str(world.root / "dinov2"), CPU)
    assert (plain.mean, plain.std) == (list(images.IMAGENET_MEAN), list(images.IMAGENET_STD))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3}))
    own = Teacher(str(folder), CPU)
    assert (own.mean, own.std) == ([0.5] * 3, [0.2] * 3)
    assert not torch.allclose(own.tokens(pictures, (4, 4)), plain.tokens(pictures, (4, 4)), atol=1e-3)
    assert teachers.identity(str(folder)) != teachers.identity(str(world.root / "dinov2"))


def test_normalisation_and_resize_of_teacher_images():
    grey = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    found = images.for_teacher(grey, (16, 16), [0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    assert found.shape == (1, 3, 16, 16)
    torch.testing.assert_close(found[0, :, 5, 5], torch.tensor([0.2, 0.0, -0.05]), rtol=0, atol=1e-6)
    checks = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).repeat(1, 3, 16, 1)
    halved = images.for_teacher(checks, (8, 8), [0.0] * 3, [1.0] * 3)
    # Antialiasing averages stripes away; picking every other pixel would keep one colour of them.
    torch.testing.assert_close(halved[..., 2:-2], torch.full_like(halved[..., 2:-2], 0.5), rtol=0, atol=0.05)


def test_widths_and_strangers(world):
    assert teacher_width(str(world.root / "dinov3")) == 16
    with pytest.raises(UserError, match=r"is a 't5gemma', must be one of dinov2, dinov2_with_registers, dinov3_vit"):
        teacher_width(str(world.root / "text"))
