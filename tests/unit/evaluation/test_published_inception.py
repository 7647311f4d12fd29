"""Published FID's network: taken from torchmetrics where its package and weights are there, else a clear message."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation import inception
from evaluation.evaluate import EvaluationSpec, Evaluator
from evaluation.features import load_extractor
from evaluation.metrics import fid
from evaluation.streaming import FID


class Stand(nn.Module):
    """The interface of torchmetrics' `NoTrainInceptionV3`: uint8 in, the asked features out."""

    def __init__(self, name: str, features_list: list[str], weights_path: str) -> None:
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        self.bias = float(Path(weights_path).stat().st_size)

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        means = images.float().mean(dim=(2, 3))
        return torch.cat([means + self.bias, torch.zeros(len(images), 2045)], dim=1)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for the published one, and a network that reads it."""
    path = tmp_path / inception.WEIGHTS
    path.write_bytes(b"weights")
    monkeypatch.setattr(inception, "HASH_PREFIX", hashlib.sha256(b"weights").hexdigest()[:8])
    monkeypatch.setattr(inception, "_network_class", lambda: Stand)
    return path


def test_pixels_go_to_the_network_as_they_are(file: Path, images: Tensor) -> None:
    extractor = load_extractor("inception", f"torch-fidelity:{file}")
    found = extractor.embed(images, batch_size=7)
    assert found.shape == (len(images), 2048)
    torch.testing.assert_close(found[:, :3], images.float().mean(dim=(2, 3)) + 7)
    assert extractor.version.startswith("inception:torchmetrics-bilinear-aa-299-v1:")


def test_weights_are_looked_for_in_torchs_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(file.parent / "hub"))
    with pytest.raises(FileNotFoundError, match=r"hub/checkpoints/weights-inception.* get them with: curl -L"):
        load_extractor("inception", "torch-fidelity")
    (file.parent / "hub" / "checkpoints").mkdir(parents=True)
    (file.parent / "hub" / "checkpoints" / inception.WEIGHTS).write_bytes(b"weights")
    assert load_extractor("inception", "torch-fidelity").width == 2048


def test_streams_through_torchmetrics_and_equals_the_pure_function(file: Path, images: Tensor) -> None:
    extractor, dark = load_extractor("inception", f"torch-fidelity:{file}"), (images.float() * 0.7).to(torch.uint8)
    metric = FID(extractor)
    metric.update(images, real=True)
    metric.update(dark, real=False)
    expected = fid(extractor.embed(dark)[:, :3], extractor.embed(images)[:, :3])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-3)


def test_fewer_samples_than_features_are_refused(file: Path, images: Tensor) -> None:
    spec = EvaluationSpec(inception=f"torch-fidelity:{file}", metrics=["fid"])
    with pytest.raises(ValueError, match="number of reference images must be greater than 2048 for fid"):
        Evaluator(spec, images, None, None, "data")


def test_another_file_is_never_opened(file: Path) -> None:
    file.write_bytes(b"another pickle")
    with pytest.raises(ValueError, match=r"must be the published .* got sha256 [0-9a-f]{8}\.\.\.; get it from https"):
        load_extractor("inception", f"torch-fidelity:{file}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"torch-fidelity needs .* pip install 'prx-sweeps.fid.', got ModuleNotFound"):
        load_extractor("inception", "torch-fidelity")
