"""Who may import whom, checked on the syntax tree, and once on a process that really trains."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "prx": {"ray", "optuna", "wandb", "evaluation", "sweeps", "cluster"},
    "evaluation": {"prx", "ray", "sweeps", "cluster"},
    "cluster": {"prx", "evaluation", "sweeps"},
}
TECHNIQUES_MAY = {
    "prx.config",
    "prx.interfaces",
    "prx.errors",
    "prx.loaders",
    "prx.images",
    "prx.rng",
    "prx.layers",
    "prx.latent_norm",
    "prx.discriminator",
    "prx.timesteps",
    "prx.perceptual_net",
    "prx.teachers",
}
PACKAGES = ("prx", "evaluation", "cluster", "sweeps")
FILES = [path for package in (*PACKAGES, "tests") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.Module) -> set[str]:
    """List every imported module, and `package.name` for names imported from a package."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_of(path: Path) -> set[str]:
    return imported(ast.parse(path.read_text(encoding="utf-8")))


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_reader_of_imports_sees_nested_and_partial_ones():
    source = "def f():\n    import ray.tune\n    from prx import trainer\n"
    assert imported(ast.parse(source)) == {"ray.tune", "prx", "prx.trainer"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_their_layer(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    broken = {str(path): top(imports_of(path)) & FORBIDDEN[package] for path in files}
    assert {path: names for path, names in broken.items() if names} == {}


def test_techniques_know_interfaces_only():
    broken = {}
    for path in sorted((ROOT / "prx" / "techniques").glob("[a-z]*.py")):
        own = {name for name in imports_of(path) if name.startswith("prx.")}
        foreign = {
            name for name in own if not any(name == m or name.startswith(f"{m}.") for m in TECHNIQUES_MAY)
        }
        if foreign:
            broken[path.name] = foreign
    assert broken == {}


def test_torchvision_is_imported_nowhere():
    assert [str(path) for path in FILES if "torchvision" in top(imports_of(path))] == []


def test_files_stay_short():
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 350} == {}


TRAIN = """
import sys
import prx.__main__ as command
sys.argv = ["prx", "train", *sys.argv[1:]]
try:
    command.app()
except SystemExit as stop:
    assert not stop.code, stop.code
unwanted = {"ray", "optuna", "wandb", "torchvision", "evaluation", "sweeps", "cluster"}
print("unwanted:", sorted(unwanted & set(sys.modules)))
"""


def test_training_alone_needs_no_other_package(world, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(world.settings(steps=2)))
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, str(config)]
    command += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "unwanted: []" in done.stdout
    assert (tmp_path / "out" / "samples" / "step-00000002.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "checkpoints" / "step-00000002").is_dir()
