"""LPIPS: the reference's numbers, zero where it must be, a gate, and networks that nobody trains or owns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prx import perceptual_net
from prx.embedded.scenes import render, sample_scene
from prx.errors import UserError
from prx.interfaces import FlowSample, RunShape, StepView
from prx.perceptual_net import CONVOLUTIONS, PerceptualNetwork
from prx.techniques.lpips import Lpips

CPU = torch.device("cpu")
WIDTHS = (64, 128, 256, 512, 512)
READY = frozenset({"pixels", "clean_prediction"})
INCEPTION = "embedded:inception"


def random_vgg(widths: tuple[int, ...] = WIDTHS) -> nn.Sequential:
    """Build the convolutions of VGG16 in torchvision's order, so that `features.N` keeps its number."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width, group in zip(widths, CONVOLUTIONS, strict=True):
        for _ in group:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).requires_grad_(False)


def save_vgg(features: nn.Sequential, folder) -> str:
    """Write the files of timm/vgg16.tv_in1k, a classifier's tensor included."""
    weights = {f"features.{name}": value for name, value in features.state_dict().items()}
    save_file(weights | {"head.fc.bias": torch.zeros(1000)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vgg16", "num_classes": 1000}))
    return str(folder)


@pytest.fixture(scope="module")
def vgg() -> nn.Sequential:
    return random_vgg()


@pytest.fixture(scope="module")
def folder(vgg, tmp_path_factory) -> str:
    return save_vgg(vgg, tmp_path_factory.mktemp("vgg"))


@pytest.fixture(params=["vgg16", "resnet"])
def network(request, folder) -> PerceptualNetwork:
    return perceptual_net.shared(folder if request.param == "vgg16" else INCEPTION, "cpu")


def scenes(num: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    pixels = np.stack([render(sample_scene(rng)) for _ in range(num)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def noisy(images: Tensor, scale: float) -> Tensor:
    return images + scale * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def test_vgg_distance_is_that_of_torchmetrics(vgg, folder, monkeypatch):
    """Value and gradient; torchmetrics takes its convolutions from torchvision, here from us."""
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained=False: vgg)
    reference = lpips._NoTrainLpips(net="vgg")
    clean, estimate = scenes(3), noisy(scenes(3), 0.5).requires_grad_()
    expected = reference(estimate, clean).flatten()
    wanted = torch.autograd.grad(expected.sum(), estimate)[0]
    distance = PerceptualNetwork(folder, CPU).distance(estimate, clean)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-6)
    found = torch.autograd.grad(distance.sum(), estimate)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert float(distance.detach().min()) > 0.01


def test_resnet_distance_written_out():
    """Cosine distances at each place, twice their mean over places, and over depths."""
    network = PerceptualNetwork(INCEPTION, CPU)
    first, second = scenes(2), scenes(2, seed=7)
    statistics = torch.tensor([0.485, 0.456, 0.406, 0.229, 0.224, 0.225]).view(2, 1, 3, 1, 1)
    states = [
        [*network.backbone(((images + 1) / 2 - statistics[0]) / statistics[1])] for images in (first, second)
    ]  # fmt: skip
    assert [state.shape[1] for state in states[0]] == [32, 32, 48, 64]
    cosines = [torch.cosine_similarity(a, b, dim=1).mean(dim=(1, 2)) for a, b in zip(*states, strict=True)]
    expected = sum(2 - 2 * cosine for cosine in cosines) / 4
    torch.testing.assert_close(network.distance(first, second), expected, rtol=1e-4, atol=1e-5)


def test_resnet_stages_are_those_of_its_own_forward():
    network = PerceptualNetwork(INCEPTION, CPU)
    images = torch.randn(2, 3, 32, 32)
    *_, last = network.backbone(images)
    assert torch.equal(last, network.backbone.model(images).last_hidden_state)


def test_equal_pictures_have_no_distance_and_no_gradient(network):
    images = scenes(2).requires_grad_()
    distance = network.distance(images, images.detach())
    assert torch.equal(distance.detach(), torch.zeros(2))
    assert not torch.autograd.grad(distance.sum(), images)[0].any()


def test_distance_is_symmetric_and_grows_with_noise(network):
    images = scenes(8)
    steps = [network.distance(noisy(images, scale), images) for scale in (0.02, 0.1, 0.5)]
    assert (steps[0] < steps[1]).all()
    assert (steps[1] < steps[2]).all()
    torch.testing.assert_close(network.distance(images, noisy(images, 0.5)), steps[2])


def test_one_colour_has_a_finite_gradient(network):
    """Where every channel is silent a plain norm would divide by zero."""
    images = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    network.distance(images, scenes(1)).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.any()


def test_descending_lowers_the_distance(network):
    """A long way outside of [-1, 1] there is a gradient too: nothing is clamped."""
    clean = scenes(2)
    start = noisy(clean, 0.1) + 2
    estimate = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([estimate], lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        network.distance(estimate, clean).sum().backward()
        assert estimate.grad.flatten(1).any(dim=1).all()
        optimizer.step()
    assert (network.distance(estimate, clean) < 0.95 * network.distance(start, clean)).all()


def test_autocast_only_touches_the_convolutions(network):
    images = scenes(4)
    exact = network.distance(noisy(images, 0.3), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.distance(images, images), torch.zeros(4))
        rounded = network.distance(noisy(images, 0.3), images)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0)


def test_no_weight_gets_a_gradient(network):
    images = scenes(2).requires_grad_()
    network.distance(images, scenes(2, seed=3)).sum().backward()
    parameters = list(network.backbone.parameters())
    assert len(parameters) > 10
    assert all(p.grad is None and not p.requires_grad for p in parameters)
    assert not any(module.training for module in network.backbone.modules())


def test_networks_that_do_not_fit_are_refused(tmp_path, world):
    with pytest.raises(UserError, match=r"is a 'dinov2_with_registers', must be one of resnet, vgg16$"):
        perceptual_net.kind(str(world.root / "dinov2"))
    narrow = save_vgg(random_vgg((8, 8, 8, 8, 8)), tmp_path)
    with pytest.raises(UserError, match=r"need a VGG16 of widths \[64, 128, 256, 512, 512\], got \[8, 8, 8, 8, 8\]$"):
        PerceptualNetwork(narrow, CPU)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the weights lack 25 tensors of VGG16, the first is features\.0\.bias$"):
        PerceptualNetwork(narrow, CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        PerceptualNetwork(narrow, CPU)


def term(**settings) -> Lpips:
    config = Lpips.Config(use="lpips", **{"network": INCEPTION} | settings)
    return Lpips("lpips", config, RunShape(3, 32, depth=2, grid=(8, 8), provides=READY))


def view(estimate: Tensor, clean: Tensor, t: Tensor) -> StepView:
    return StepView(FlowSample(clean, clean, t, clean), clean, {}, estimate=estimate)


def test_value_is_the_mean_distance():
    clean, estimate = scenes(4), noisy(scenes(4), 0.3)
    expected = PerceptualNetwork(INCEPTION, CPU).distance(estimate, clean).mean()
    torch.testing.assert_close(term()(view(estimate, clean, torch.rand(4))), expected)
    assert float(term()(view(clean, clean, torch.rand(4)))) == 0
    assert term().config.weight == 0.1
    assert term().wants_estimate


def test_samples_over_the_threshold_count_as_zero():
    clean, t = scenes(4), torch.tensor([0.2, 0.7, 0.71, 1.0])
    estimate = noisy(clean, 0.3)
    estimate[2:] = float("nan")  # what is left out cannot even spoil the sum
    estimate.requires_grad_()
    value = term(max_t=0.7)(view(estimate, clean, t))
    value.backward()
    alone = term()(view(estimate[:2], clean[:2], t[:2]))
    torch.testing.assert_close(value, alone / 2)
    assert not estimate.grad[2:].any()
    assert estimate.grad[:2].flatten(1).any(dim=1).all()
    assert float(term(max_t=0.1)(view(estimate, clean, t))) == 0


def test_micro_batches_add_up_whatever_the_threshold():
    clean, t = scenes(4), torch.tensor([0.2, 0.9, 0.3, 0.4])
    estimate, lpips = noisy(clean, 0.3), term(max_t=0.5)
    whole = lpips(view(estimate, clean, t))
    halves = [lpips(view(estimate[part], clean[part], t[part])) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_pictures_can_be_shrunk_first():
    clean = scenes(2)
    estimate = noisy(clean, 0.3).requires_grad_()
    value = term(resize=0.5)(view(estimate, clean, torch.rand(2)))
    assert 0 < float(value.detach()) != float(term()(view(estimate.detach(), clean, torch.rand(2))))
    assert torch.autograd.grad(value, estimate)[0].any()


def test_the_network_belongs_to_no_module_and_is_held_once():
    lpips = term()
    lpips(view(scenes(1), scenes(1, seed=2), torch.zeros(1)))
    assert list(lpips.modules()) == [lpips]
    assert not lpips.state_dict()
    assert perceptual_net.shared(INCEPTION, "cpu") is perceptual_net.shared(INCEPTION, "cpu")


def test_latents_have_no_place_in_a_network_for_pictures():
    latents = torch.randn(2, 4, 32, 32)
    with pytest.raises(RuntimeError, match="size of tensor a"):
        term()(view(latents, latents, torch.zeros(2)))


@pytest.mark.parametrize("provides", [(), ("pixels",), ("clean_prediction",), sorted(READY)], ids=str)
def test_latents_are_refused(provides):
    shape = RunShape(3, 32, depth=2, grid=(8, 8), provides=frozenset(provides))
    found = Lpips.problems(term().config, shape)
    assert found == ([] if "pixels" in provides else [("use", "compares pictures, needs tokenizer.use: pixels")])


def test_pictures_too_small_for_the_network_are_refused(folder, tmp_path):
    shape = RunShape(3, 16, depth=2, grid=(4, 4), provides=READY)
    assert Lpips.problems(term(network=folder).config, shape) == []
    rule = f"must leave at least 16 pixels for {folder!r}, got 8"
    assert Lpips.problems(term(network=folder, resize=0.5).config, shape) == [("resize", rule)]
    small = torch.zeros(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        term(network=folder)(view(small, small, torch.zeros(1)))
    assert [key for key, _ in Lpips.problems(term(network=str(tmp_path)).config, shape)] == ["network"]
