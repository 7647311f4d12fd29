"""From files to a `RunConfig`: named presets, bases, patches."""

from __future__ import annotations

from pathlib import Path

from prx import registry
from prx.config import RunConfig, parse_run_config
from prx.errors import ConfigError
from prx.yamlsource import Source, merge, read_yaml

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """List the starting points that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_base(name: str, at: Source | None = None, *, above: tuple[Path, ...] = ()) -> Source:
    """Read a preset by name, or a configuration file by its path.

    Args:
        name: Preset name, or path of a YAML file, relative to the file that names it.
        at: The source whose key `base` named it; errors point there.
        above: The files whose bases led here.

    Raises:
        ConfigError: There is no such preset or file, or it is its own base.
    """
    preset = PRESETS / f"{name}.yaml"
    if preset.is_file():
        return read_yaml(preset)
    folder = Path(at.file).parent if at and at.file else Path()
    path = folder / name
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        if path.resolve() in above:
            message = f"must not lead back to {name}, got {' -> '.join(p.name for p in (*above, path))}"
            raise ConfigError([(at or Source(None)).problem(("base",), message)])
        return with_base(read_yaml(path), above=(*above, path.resolve()))
    message = f"must name a preset or an existing .yaml file; {registry.choices(name, preset_names())}"
    raise ConfigError([(at or Source(None)).problem(("base",), message)])


def with_base(source: Source, *, above: tuple[Path, ...] = ()) -> Source:
    """Resolve the key `base` of a configuration file, if it has one."""
    if not isinstance(source.data, dict) or "base" not in source.data:
        return source
    if not isinstance(source.data["base"], str):
        message = f"must name a preset or an existing .yaml file, got {source.data['base']!r}"
        raise ConfigError([source.problem(("base",), message)])
    rest = {key: value for key, value in source.data.items() if key != "base"}
    patch = Source(rest, source.file, source.marks)
    return merge(load_base(source.data["base"], source, above=above), patch)


def load_run_config(path: Path) -> RunConfig:
    """Read the configuration of one run.

    Raises:
        ConfigError: As `parse_run_config`, or the file or its base cannot be read.
    """
    source = read_run_source(path)
    return parse_run_config(source.data, source)


def read_run_source(path: Path) -> Source:
    """Read the file of one run with its bases laid under it, and where every value was written.

    Raises:
        ConfigError: The file or its base cannot be read.
    """
    return with_base(read_yaml(path), above=(path.resolve(),))
