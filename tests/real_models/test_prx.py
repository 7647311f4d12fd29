"""PRX itself: its size, and denoisers that diffusers saved as the start of a trial."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import PRXTransformer2DModel

from prx import denoiser, recipe
from prx.compose import PRESETS, load_run_config
from prx.config import config_id, parse_run_config
from prx.errors import UserError
from tests.helpers import running

T5GEMMA_WIDTH, FLUX_CHANNELS = 2304, 16


def test_prx_has_1_171_billion_parameters():
    """The article says 1.2 B, and Photoroom's configuration 1.24 B in a comment; counted, it is 1.171 B."""
    config = load_run_config(PRESETS / "prx_1b_256.yaml").denoiser
    with torch.device("meta"):
        model = denoiser.build(config, FLUX_CHANNELS, T5GEMMA_WIDTH)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(1.171e9, rel=1e-3)
    assert round(count / 1e9, 1) == 1.2
    assert next(model.parameters()).device.type == "meta"


def settings(world, models, init, **changes):
    """Give a run with the shape of the saved denoiser."""
    denoiser = {"width": 32, "depth": 2, "heads": 2, "patch_size": 1, "init": init} | changes.pop("denoiser", {})
    flux = {"use": "autoencoder", "path": str(models / "flux"), "subfolder": "vae"}
    found = {
        "text": {"encoder": str(models / "t5gemma"), "max_tokens": 16}, "denoiser": denoiser, "tokenizer": flux,
        "data": world.settings()["data"] | {"image_size": 32},
    }  # fmt: skip
    return found | changes


def problems(world, models, init, **changes) -> list[str]:
    return [
        str(found)
        for found in recipe.problems(parse_run_config(world.settings(**settings(world, models, init, **changes))))
    ]


def test_a_saved_denoiser_is_where_a_trial_starts(world, models, tmp_path):
    init = {"path": str(models / "prx"), "subfolder": "transformer"}
    assert problems(world, models, init) == []
    saved = PRXTransformer2DModel.from_pretrained(models / "prx" / "transformer", torch_dtype=torch.float32)
    with running(world, tmp_path, **settings(world, models, init)) as trainer:
        found = trainer.engine.module.denoiser.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in saved.state_dict().items())
        assert all(parameter.requires_grad for parameter in trainer.engine.module.parameters())
        assert trainer.engine.module.denoiser.training
        trainer.advance(2)
        moved = trainer.engine.module.denoiser.state_dict()
        assert not torch.equal(moved["img_in.weight"], saved.img_in.weight)


def test_a_trial_starts_from_what_another_one_exported(world, models, tmp_path):
    from prx.export import export

    init = {"path": str(models / "prx"), "subfolder": "transformer"}
    config = parse_run_config(world.settings(**settings(world, models, init)))
    first = recipe.build(config)
    export(config, first, tmp_path / "out")
    again = {"path": str(tmp_path / "out"), "subfolder": "transformer"}
    assert problems(world, models, again) == []
    second = recipe.build(parse_run_config(world.settings(**settings(world, models, again))))
    found = second.denoiser.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in first.denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"denoiser": {"width": 64}}, "has hidden_size 32, denoiser.width asks for 64"),
        ({"denoiser": {"depth": 3}}, "has depth 2, denoiser.depth asks for 3"),
        ({"denoiser": {"patch_size": 2}}, "has patch_size 1, denoiser.patch_size asks for 2"),
        ({"denoiser": {"bottleneck": 8}}, "has bottleneck_size None, denoiser.bottleneck asks for 8"),
        ({"denoiser": {"resolution": "vec"}}, "has resolution_embeds False, denoiser.resolution asks for True"),
        ({"denoiser": {"theta": 100}}, "has theta 10000, denoiser.theta asks for 100"),
    ],
)
def test_another_shape_is_found_from_the_settings_alone(world, models, tmp_path, changes, rule):
    folder = tmp_path / "transformer"
    folder.mkdir()
    shutil.copy(models / "prx" / "transformer" / "config.json", folder)  # no weights
    found = problems(world, models, {"path": str(folder)}, **changes)
    assert f"denoiser.init: {str(folder)!r} {rule}" in found
    assert problems(world, models, {"path": str(folder)}) == []


def test_other_latents_and_another_text_encoder_are_found(world, models):
    init = {"path": str(models / "prx"), "subfolder": "transformer"}
    text, kl = (
        {"encoder": str(world.root / "text"), "max_tokens": 8},
        {"use": "autoencoder", "path": str(world.root / "kl")},
    )
    assert problems(world, models, init, text=text, tokenizer=kl) == [
        f"denoiser.init: {init['path']!r} has in_channels 16, tokenizer asks for 4",
        f"denoiser.init: {init['path']!r} has context_in_dim 32, text.encoder asks for 16",
    ]


def test_folders_that_hold_no_denoiser(world, models):
    whole, vae = str(models / "prx"), str(models / "dc_ae")
    assert problems(world, models, {"path": whole}) == [
        f"denoiser.init: {whole!r} is a whole pipeline: set subfolder to transformer"
    ]
    assert problems(world, models, {"path": vae}) == [
        f"denoiser.init: {vae!r} holds a 'AutoencoderDC', must hold a 'PRXTransformer2DModel'"
    ]
    (found,) = problems(world, models, {"path": "Photoroom/prx-256-t2i", "subfolder": "transformer", "revision": "v1"})
    assert found.startswith(
        "denoiser.init: 'Photoroom/prx-256-t2i' at revision 'v1': transformer/config.json is missing"
    )
    assert found.endswith('get it with: hf download Photoroom/prx-256-t2i --revision v1 --include "transformer/*"')
    (found,) = problems(world, models, {"path": whole, "subfolder": "transformer", "revision": "v1"})
    assert "is a local folder, which has no revision; got 'v1'" in found


def test_weights_that_do_not_come_are_named_before_training(world, models, tmp_path):
    folder = tmp_path / "transformer"
    shutil.copytree(models / "prx" / "transformer", folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    config = parse_run_config(world.settings(**settings(world, models, {"path": str(folder)})))
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is missing"):
        recipe.build(config)


def test_where_a_trial_starts_is_part_of_what_it_is(world, models):
    def identified(init) -> str:
        return config_id(parse_run_config(world.settings(**settings(world, models, init))))

    path = {"path": "Photoroom/prx-256-t2i"}
    inits = [None, path, path | {"revision": "a"}, path | {"subfolder": "transformer"}]
    assert len({identified(init) for init in inits}) == len(inits)
    assert identified(path) == identified(dict(path))
