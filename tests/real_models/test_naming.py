"""How models are named: roles, folders, hub ids with a pinned revision; what stands for them in cache keys."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants, errors

from prx import loaders, modelfiles
from prx.errors import UserError
from prx.teachers import Teacher, teacher_width

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(autouse=True)
def no_memory():
    """Forget look-ups, as a new process would."""
    for remembered in (loaders._hub_file, loaders._snapshot):
        remembered.cache_clear()


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """Give a hub cache with one model: `main` at COMMIT, and another commit with settings alone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "models--facebook--teacher"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    shutil.copytree(models / "dinov2", root / "snapshots" / COMMIT)
    (root / "snapshots" / OTHER).mkdir()
    shutil.copy(models / "dinov2" / "config.json", root / "snapshots" / OTHER)
    return root


def refused(function, *args) -> str:
    with pytest.raises(UserError) as stopped:
        function(*args)
    return str(stopped.value)


def test_a_cached_hub_model_loads_without_the_network(hub, models):
    assert teacher_width("facebook/teacher") == 32
    teacher = Teacher("facebook/teacher", CPU)
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    assert torch.equal(teacher.tokens(images, (2, 2)), Teacher(str(models / "dinov2"), CPU).tokens(images, (2, 2)))


def test_statistics_of_a_hub_model_are_its_own(hub):
    file = hub / "snapshots" / COMMIT / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}')
    assert Teacher("facebook/teacher", CPU).mean == [0.5] * 3


def test_a_branch_is_named_by_its_commit(hub):
    assert loaders.identity("facebook/teacher") == f"facebook/teacher/@{COMMIT}"
    assert loaders.identity("facebook/teacher@main") == f"facebook/teacher/@{COMMIT}"
    assert loaders.identity(f"facebook/teacher@{OTHER}") == f"facebook/teacher/@{OTHER}"
    assert loaders.identity("facebook/teacher", "sub", OTHER) == f"facebook/teacher/sub@{OTHER}"


def test_pinned_revision_is_the_one_that_loads(hub):
    message = refused(Teacher, f"facebook/teacher@{OTHER}", CPU)
    assert f"snapshots/{OTHER}/model.safetensors is missing" in message
    assert message.endswith(f"get it with: hf download facebook/teacher --revision {OTHER}")


def test_what_is_not_cached_is_named(hub):
    message = refused(teacher_width, "facebook/teacher@refs/pr/4")
    rule = "config.json is missing on this machine (nothing is downloaded with HF_HUB_OFFLINE=1)"
    how = "get it with: hf download facebook/teacher --revision refs/pr/4"
    assert message == f"'facebook/teacher' at revision 'refs/pr/4': {rule}; {how}"


def answer(kind: type) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/org/name")
    return kind("first line\nsecond line", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, ["is gated: accept its terms at https://huggingface.co/org/name", "hf auth login"]),
        (errors.RepositoryNotFoundError, ["is no model on the hub and no local folder", "if it is private"]),
        (errors.RevisionNotFoundError, ["'org/name' has no revision 'v2'"]),
        (errors.RemoteEntryNotFoundError, ["config.json is missing", "the model on the hub does not have it"]),
        (errors.HfHubHTTPError, ["config.json is missing on this machine (first line)", "hf download org/name"]),
    ],
)
def test_each_refusal_of_the_hub_has_its_words(monkeypatch, kind, words):
    def refuse(*_, **__):
        raise answer(kind)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    for function, call in (("hf_hub_download", loaders.read_config), ("snapshot_download", loaders.folder)):
        monkeypatch.setattr(f"huggingface_hub.{function}", refuse)
        message = refused(call, "org/name@v2")
        assert "second line" not in message
        found = [word for word in words if word.replace("config.json", "*.safetensors") in message or word in message]
        assert found == words


def test_only_wanted_files_are_asked_for(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: asked.update(given) or str(tmp_path))
    assert loaders.folder("org/name", "vae", "v2") == tmp_path / "vae"
    assert asked["revision"] == "v2"
    assert asked["local_files_only"] is False
    assert "vae/*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in asked["allow_patterns"])
    assert "vae/*/*" in asked["ignore_patterns"]


def test_names_that_cannot_be(models):
    assert "neither an existing folder nor a hub id" in refused(loaders.place, "/no/such/folder")
    assert "neither an existing folder nor a hub id" in refused(loaders.place, "./folder")
    assert "revision must be given once, got 'a' and 'b'" in refused(loaders.place, "org/name@a", None, "b")
    assert "which has no revision" in refused(loaders.place, f"{models / 'dinov2'}@v1")
    assert loaders.place("org/name@a", None, "a").revision == "a"


def test_a_folder_with_an_at_sign_is_a_folder(models, tmp_path):
    folder = shutil.copytree(models / "dinov2", tmp_path / "dino@home")
    assert loaders.place(str(folder)).local
    assert teacher_width(str(folder)) == 32


def test_home_folder_is_understood(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    assert teacher_width("~/dinov2") == 32


def large(folder: Path) -> Path:
    """Write weights too large to be read at every look."""
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(bytes(modelfiles._REMEMBERED + 3_000))
    return file


def settle(file: Path) -> None:
    os.utime(file, (1_000_000_000, 1_000_000_000))


def test_one_byte_in_the_middle_changes_a_folders_name(tmp_path, monkeypatch):
    """The same length and the same modification time do not hide it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(modelfiles, "_SETTLED_S", -1.0)
    file = large(tmp_path / "model")
    settle(file)
    first = loaders.identity(str(file.parent))
    with file.open("r+b") as stream:
        stream.seek(modelfiles._REMEMBERED // 2)
        stream.write(b"\x01")
    settle(file)
    assert loaders.identity(str(file.parent)) != first


def test_large_files_are_read_once_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(modelfiles, "_SETTLED_S", -1.0)
    file = large(tmp_path / "model")
    first = loaders.identity(str(file.parent))
    modelfiles._remembered.cache_clear()
    monkeypatch.setattr(modelfiles, "_hash", lambda file: pytest.fail(f"{file} was read again"))
    assert loaders.identity(str(file.parent)) == first


def test_files_that_just_changed_are_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = large(tmp_path / "model")
    loaders.identity(str(file.parent))
    assert not (tmp_path / "cache").exists()


def test_notes_beside_the_weights_do_not_change_the_name(models, tmp_path):
    folder = Path(shutil.copytree(models / "dinov2", tmp_path / "dinov2"))
    first = loaders.identity(str(folder))
    assert first == loaders.identity(str(models / "dinov2"))
    (folder / "README.md").write_text("notes")
    assert loaders.identity(str(folder)) == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert loaders.identity(str(folder)) != first
