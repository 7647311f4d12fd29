"""Load a checkpoint into an engine of another shape: other workers, another ZeRO stage.

DeepSpeed 0.19 writes what each worker holds and reads it back at the same shape only; its universal format
knows Adam's two moments and no stage 0. Here every parameter is put together from the files and cut again, with
whatever state its optimizer keeps, so that nothing is rounded or lost. Files are mapped, not read: a worker
touches what it needs, one parameter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prx.errors import UserError

WHOLE = "mp_rank_00_model_states.pt"
PART = "zero_pp_rank_0_mp_rank_00_model_states.pt"
KINDS = ("whole", "flat", "flat", "split")
"""How stages 0..3 lay out a checkpoint: whole tensors, groups as flat vectors, every parameter cut."""
MOMENTUM = "momentum_buffer"
"""Muon's state. Stages 1 and 2 keep it for whole matrices: those that a worker's part touches."""

Groups = Sequence[Sequence[str]]
"""The names of the parameters in each of the optimizer's groups, in its order."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is cut; `workers` does not matter where it is whole."""

    kind: str
    workers: int = 1

    @classmethod
    def of(cls, stage: int, workers: int) -> Layout:
        """Give the layout that a run writes."""
        return cls(KINDS[stage], workers if stage else 1)


def layout(folder: Path) -> Layout:
    """Tell from DeepSpeed's files how a checkpoint is cut.

    Raises:
        UserError: The folder holds no checkpoint, or a part of one.
    """
    workers = len(_shards(folder))
    split = (folder / PART).is_file()
    if not split and not (folder / WHOLE).is_file():
        raise UserError(f"{folder} holds no checkpoint: neither {WHOLE} nor {PART} is there")
    if not workers:
        return Layout("whole")
    found = _read(_shards(folder)[0])["optimizer_state_dict"]["partition_count"]
    written = max(found) if isinstance(found, list) else int(found)
    if written != workers:
        rule = f"{written} workers wrote it, the files of {workers} are there"
        raise UserError(f"{folder} is no complete checkpoint: {rule}")
    return Layout("split" if split else "flat", workers)


class Saved:
    """A checkpoint's tensors by parameter, whole, whatever wrote them.

    Raises:
        UserError: The folder holds no checkpoint of a run with these parameters.
    """

    def __init__(self, folder: Path, groups: Groups) -> None:
        self.layout, self.groups = layout(folder), groups
        self.module = _read(folder / (PART if self.layout.kind == "split" else WHOLE))
        self._shards = [_read(shard)["optimizer_state_dict"] for shard in _shards(folder)]
        self._shapes = {name: shape for part in self.module["param_shapes"] or [] for name, shape in part.items()}
        held = set(self._shapes or self.module["module"]) - set(self.module["buffer_names"])
        self._place = {name: (i, j) for i, names in enumerate(groups) for j, name in enumerate(names)}
        if self._place.keys() != held:
            other = ", ".join(sorted(self._place.keys() ^ held)[:3])
            raise UserError(f"{folder} is no checkpoint of this configuration: the models differ in {other}")
        self._start = self._starts()

    def _starts(self) -> dict[str, int]:
        """Give where every parameter, or a worker's piece of it, begins in its group."""
        found = {}
        for names in self.groups if self._shapes else ():
            before = 0
            for name in names:
                found[name] = before
                before += self._size(name)
        return found

    def _size(self, name: str) -> int:
        """Count the weights of a parameter, or of a worker's piece of it, padding included."""
        numel = self._shapes[name].numel()
        return math.ceil(numel / self.layout.workers) if self.layout.kind == "split" else int(numel)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Give the persistent buffers, such as running statistics."""
        return {name: self.module["module"][name] for name in self.module["buffer_names"]}

    def weight(self, name: str) -> Tensor:
        """Give what the optimizer steps: the float32 master where there is one."""
        i, j = self._place[name]
        if self.layout.kind == "whole":
            masters = self.module["optimizer"].get("fp32_groups")
            return masters[i][j] if masters else self.module["module"][name]
        key = "fp32_flat_groups" if self.layout.kind == "split" else "single_partition_of_fp32_groups"
        return self._joined(name, [[shard[key][k] for k in self._numbers(shard, i)] for shard in self._shards])

    def state(self, name: str) -> dict[str, Tensor]:
        """Give the optimizer's state: tensors of the weight's shape, and scalars such as `step`."""
        i, j = self._place[name]
        if self.layout.kind == "whole":
            optimizer = self.module["optimizer"]
            held = optimizer.get("optimizer_state_dict", optimizer)
            return dict(held["state"].get(held["param_groups"][i]["params"][j], {}))
        states = [[_held(shard)["state"].get(k, {}) for k in self._numbers(shard, i)] for shard in self._shards]
        keys = list(states[0][0])
        return {key: self._entry(name, key, [[part[key] for part in parts] for parts in states]) for key in keys}

    def _numbers(self, shard: Mapping[str, Any], group: int) -> list[int]:
        """List the vectors of a group: one, or at stage 3 one for every thousand million weights."""
        return list(_held(shard)["param_groups"][group]["params"])

    def _entry(self, name: str, key: str, parts: list[list[Tensor]]) -> Tensor:
        if parts[0][0].ndim == 0:
            return parts[0][0]
        if key == MOMENTUM and self.layout.kind == "flat":
            return self._matrix(name, [part for (part,) in parts])
        return self._joined(name, parts)

    def _joined(self, name: str, parts: list[list[Tensor]]) -> Tensor:
        """Put a parameter together from the vectors of its group, a list of them for every worker."""
        shape, start = self._shapes[name], self._start[name]
        if self.layout.kind == "split":
            pieces = [_stretch(vectors, start, self._size(name)) for vectors in parts]
            return torch.cat(pieces)[: shape.numel()].view(shape)
        return _stretch([vector for vectors in parts for vector in vectors], start, self._size(name)).view(shape)

    def _matrix(self, name: str, parts: list[Tensor]) -> Tensor:
        """Find a matrix with the first worker whose stretch of the group touches it: that one has it whole."""
        i, _ = self._place[name]
        start, size = self._start[name], self._size(name)
        for rank, (part, shard) in enumerate(zip(parts, self._shards, strict=True)):
            length = len(shard["single_partition_of_fp32_groups"][i]) + shard["group_paddings"][i]
            if start < (rank + 1) * length:
                first = next(n for n in self.groups[i] if self._start[n] + self._size(n) > rank * length)
                return _stretch([part], start - self._start[first], size).view(self._shapes[name])
        raise AssertionError(f"{name} lies in no worker's part")


def _held(shard: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what torch's optimizer saved in a worker's part."""
    return shard["base_optimizer_state" if "base_optimizer_state" in shard else "optimizer_state_dict"]  # type: ignore[no-any-return]


def _stretch(vectors: Sequence[Tensor], start: int, size: int) -> Tensor:
    """Cut out of vectors as if they were one."""
    found, before = [], 0
    for vector in vectors:
        low, high = max(start - before, 0), min(start + size - before, len(vector))
        if low < high:
            found.append(vector[low:high])
        before += len(vector)
    return torch.cat(found)


def load(engine: Any, folder: Path, groups: Groups) -> Mapping[str, Any]:
    """Fill a DeepSpeed engine from a checkpoint of another layout; gives the checkpoint's other contents.

    Args:
        engine: Of the same run, whatever its workers and stage.
        folder: DeepSpeed's files.
        groups: As the engine's optimizer was built.
    """
    saved = Saved(folder, groups)
    with torch.no_grad():
        _fill(engine, saved)
        for name, value in saved.buffers.items():
            engine.module.get_buffer(name).copy_(value)
    engine.global_steps = saved.module["global_steps"]
    return saved.module


def _fill(engine: Any, saved: Saved) -> None:
    optimizer = engine.optimizer
    _forget(getattr(optimizer, "optimizer", optimizer).state)
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        _fill_split(optimizer, names, saved)
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        _fill_flat(optimizer, names, saved)
    else:
        _fill_whole(optimizer, dict(engine.module.named_parameters()), saved)


def _forget(states: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """Set the optimizer's state to nothing, in place: some of DeepSpeed's buffers have a type of their own."""
    for state in states.values():
        for entry in state.values():
            entry.zero_()


def _fill_whole(optimizer: Any, parameters: Mapping[str, nn.Parameter], saved: Saved) -> None:
    """Stage 0: every worker has everything; in bfloat16 the optimizer steps float32 copies."""
    masters = getattr(optimizer, "fp32_groups", None)
    states = (optimizer.optimizer if masters else optimizer).state
    for i, names in enumerate(saved.groups):
        for j, name in enumerate(names):
            value, master = saved.weight(name), masters[i][j] if masters else parameters[name]
            master.copy_(value)
            parameters[name].copy_(value)
            states[master] = {key: _like(master, entry) for key, entry in saved.state(name).items()}


def _like(master: Tensor, entry: Tensor) -> Tensor:
    """Copy a state to where its weight is; step counts stay where the optimizer keeps them."""
    return entry.clone() if entry.ndim == 0 else entry.to(master.device, copy=True)


def _fill_flat(optimizer: Any, names: Mapping[Tensor, str], saved: Saved) -> None:
    """Stages 1 and 2: a worker steps its stretch of every group; all have the whole weights."""
    for i, parameters in enumerate(optimizer.bit16_groups):
        flat = optimizer.single_partition_of_fp32_groups[i]
        state = optimizer.optimizer.state[flat]
        for parameter in parameters:
            value, held = saved.weight(names[parameter]), parameter._hp_mapping
            parameter.copy_(value)
            if held is None:
                continue
            there, here = held.lp_fragment_address, held.hp_fragment_address
            entries = {key: entry for key, entry in saved.state(names[parameter]).items() if key != MOMENTUM}
            _put(flat, value, entries, state, slice(there.start, there.start + there.numel), here.start)
        whole = [saved.state(names[parameter]).get(MOMENTUM) for parameter in optimizer.params_in_partition[i]]
        matrices = [matrix.flatten() for matrix in whole if matrix is not None]
        if matrices:
            state[MOMENTUM] = torch.cat(matrices).to(flat.device)


def _fill_split(optimizer: Any, names: Mapping[Tensor, str], saved: Saved) -> None:
    """Stage 3: a worker has its piece of every parameter."""
    optimizer.checkpoint_event_prologue()
    for i, parameters in enumerate(optimizer.fp16_groups):
        flat, before = optimizer.fp32_partitioned_groups_flat[i], 0
        for parameter in parameters:
            name, size, rank = names[parameter], parameter.partition_numel(), dist.get_rank()
            part = slice(rank * size, (rank + 1) * size)
            _put(flat, saved.weight(name), saved.state(name), optimizer.optimizer.state[flat], part, before)
            before += size
        stored, pieces = optimizer.fp16_partitioned_groups_flat[i], optimizer.fp16_partitioned_groups[i]
        stored.copy_(flat)
        for piece, value in zip(pieces, optimizer.unflatten(stored, pieces), strict=True):
            piece.data = value.data
    optimizer.checkpoint_event_epilogue()


def _put(
    flat: Tensor, value: Tensor, entries: Mapping[str, Tensor], state: dict[str, Tensor], part: slice, start: int
) -> None:
    """Write a part of a parameter, and of its state, into a worker's vectors from `start` on."""
    for key, entry in entries.items():
        if entry.ndim == 0:  # a vector has one step count; without ZeRO its parameters may differ
            state[key] = torch.maximum(state.get(key, torch.zeros_like(entry)), entry)
            continue
        vector = state.setdefault(key, torch.zeros_like(flat))
        vector[start:][: len(entry.flatten()[part])] = entry.flatten()[part].to(vector)
    flat[start:][: len(value.flatten()[part])] = value.flatten()[part].to(flat)


def _shards(folder: Path) -> list[Path]:
    """List the workers' parts of the optimizer, by rank."""
    found = folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")
    return sorted(found, key=lambda path: int(path.name.partition("pp_rank_")[2].partition("_")[0]))


def _read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)  # type: ignore[no-any-return]
