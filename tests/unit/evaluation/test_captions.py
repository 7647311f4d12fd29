"""CLIP score against the library's own model, and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from evaluation.captions import clip_score, embed_captions, has_text_tower
from evaluation.evaluate import EvaluationSpec, Evaluator

VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["<pad>", "<eos>", "<unk>", "a", "red", "blue", "circle", "square"]
CAPTIONS = ["a red circle", "a blue square", "a circle", "blue"] * 5


@pytest.fixture(scope="module")
def full(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with both towers and a tokenizer of whole words."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("clip")
    text = VIT | {"vocab_size": 8, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    text |= {"max_position_embeddings": 6}
    vision = VIT | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folder)
    shutil.copy(weights["clip"] / "preprocessor_config.json", folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "right"}))
    return folder


def test_captions_are_those_of_the_whole_model(full: Path) -> None:
    model = CLIPModel.from_pretrained(full).eval()
    ids = torch.tensor([[3, 4, 6, 1], [3, 5, 7, 1]])
    with torch.no_grad():
        expected = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    found = embed_captions(full, ["a red circle", "a blue square"])
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_padding_does_not_matter_and_long_captions_are_cut(full: Path) -> None:
    together = embed_captions(full, ["blue", "a red circle", "a red circle a red circle a red"])
    torch.testing.assert_close(together[0], embed_captions(full, ["blue"])[0], rtol=1e-4, atol=1e-5)
    cut = embed_captions(full, ["a red circle a red"])[0]
    torch.testing.assert_close(together[2], cut, rtol=1e-4, atol=1e-5)


def test_score_is_a_hundred_times_the_mean_cosine() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    captions = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    mean, se = clip_score(images, captions)
    assert mean == pytest.approx(100 / 3, abs=1e-9)
    assert se == pytest.approx(200 / 3, abs=1e-9)
    with pytest.raises(ValueError, match=r"equal shapes of at least 2 rows, got \[3, 2\] and \[2, 2\]"):
        clip_score(images, captions[:2])


def test_evaluator_scores_each_image_with_its_own_caption(full: Path, images: Tensor) -> None:
    spec = EvaluationSpec(clip=full, metrics=["cmmd", "clip_score"])
    found = Evaluator(spec, images, None, None, "data", captions=CAPTIONS).evaluate(images[:20])
    evaluator = Evaluator(spec, images, None, None, "data", captions=CAPTIONS[1:] + CAPTIONS[:1])
    assert found["clip_score_se"] > 0
    assert evaluator.evaluate(images[:20])["clip_score"] != found["clip_score"]
    assert evaluator.evaluate(images[1:21])["cmmd"] > 0
    with pytest.raises(ValueError, match="clip_score needs a caption for every image, got none"):
        Evaluator(spec, images, None, None, "data")


def test_an_image_tower_alone_is_refused(weights: dict[str, Path], full: Path, tmp_path: Path) -> None:
    assert has_text_tower(full)
    assert not has_text_tower(weights["clip"])
    folder = shutil.copytree(weights["clip"], tmp_path / "clip")
    shutil.copy(full / "tokenizer.json", folder)
    with pytest.raises(ValueError, match="clip_score needs a text tower"):
        embed_captions(folder, ["a red circle"])
    with pytest.raises(FileNotFoundError, match=r"must contain tokenizer\.json"):
        embed_captions(weights["clip"], ["a red circle"])
