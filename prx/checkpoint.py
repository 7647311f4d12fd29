"""Read the weights of a checkpoint without an engine: on one process, whatever wrote it."""

from __future__ import annotations

import io
import pickle
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from prx import recipe
from prx.config import RunConfig
from prx.engine import AVERAGE, TAG, import_deepspeed
from prx.errors import UserError
from prx.train_step import TrainStep

WHOLE = "mp_rank_00_model_states.pt"
PART = "zero_pp_rank_0_mp_rank_00_model_states.pt"


def read_module(config: RunConfig, checkpoint: Path) -> TrainStep:
    """Build a run's module on the CPU with the weights that its sampler uses, whole at any ZeRO stage.

    Those are the average of the weights where `sampling.weights` says so.

    Raises:
        UserError: The folder is no checkpoint of this configuration.
    """
    start = config.denoiser.model_copy(update={"init": None})  # overwritten at once, so not to be looked for
    module = recipe.build(config.model_copy(update={"denoiser": start}))
    found = _weights(checkpoint)
    if config.precision.startswith("bf16"):  # ZeRO 3 gives its float32 masters, the sampler uses what is stored
        found |= {name: found[name].bfloat16() for name, _ in module.named_parameters() if name in found}
    if config.sampling.weights == "ema":
        found |= _load(checkpoint / AVERAGE)
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise UserError(f"{checkpoint} is no checkpoint of this configuration: {error}") from error
    return module.eval()


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    folder = checkpoint / TAG
    if (folder / PART).is_file():
        import_deepspeed(torch.device("cpu"))
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints how far it is
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG))
    return dict(_load(folder / WHOLE)["module"])


def _load(file: Path) -> dict:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {file.parent} is no complete checkpoint of this run") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} is damaged ({reason}); remove {file.parents[1]}, or name another step") from error
