"""Draw and describe procedural 32x32 scenes: a background with one or two coloured shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

IMAGE_SIZE = 32
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 25),
    "green": (20, 170, 40),
    "blue": (30, 50, 225),
    "yellow": (245, 225, 20),
    "purple": (190, 30, 215),
    "cyan": (20, 215, 225),
    "black": (12, 12, 12),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
SIZES: dict[str, float] = {"small": 4.25, "large": 6.5}
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
NONE = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    **{
        f"{which}_{name}": (*values, *absent)
        for which, absent in (("first", ()), ("second", (NONE,)))
        for name, values in (
            ("shape", SHAPES),
            ("colour", tuple(COLOURS)),
            ("size", tuple(SIZES)),
            ("position", POSITIONS),
        )
    },
}

_CENTRES = (7, 16, 25)
_JITTER = 1
_OVERLAP = 1.0
_BOX = 8  # half the side of the box that holds the largest shape
_SUPERSAMPLING = 6
_SENSOR_NOISE = 6.0


@dataclass(frozen=True)
class SceneObject:
    """One shape; `position` is a reading-order cell of the 3x3 layout, `jitter` its (row, column) shift.

    Units: jitter in whole pixels.
    """

    shape: str
    colour: str
    size: str
    position: int
    jitter: tuple[int, int]

    @property
    def centre(self) -> tuple[int, int]:
        """Give the (row, column) of the centre in pixels."""
        row, column = divmod(self.position, 3)
        return _CENTRES[row] + self.jitter[0], _CENTRES[column] + self.jitter[1]


@dataclass(frozen=True)
class Scene:
    """A background colour and one or two objects in reading order."""

    background: str
    objects: tuple[SceneObject, ...]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; one in four has a single object, two objects never overlap by more than a pixel."""
    background = _pick(rng, tuple(COLOURS))
    objects = [_sample_object(rng, background)]
    if rng.random() < 0.75:
        other = _sample_object(rng, background)
        while not _apart(objects[0], other):
            other = _sample_object(rng, background)
        objects.append(other)
    return Scene(background, tuple(sorted(objects, key=lambda item: item.position)))


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _sample_object(rng: np.random.Generator, background: str) -> SceneObject:
    row, column = rng.integers(-_JITTER, _JITTER + 1, size=2)
    return SceneObject(
        shape=_pick(rng, SHAPES),
        colour=_pick(rng, tuple(name for name in COLOURS if name != background)),
        size=_pick(rng, tuple(SIZES)),
        position=int(rng.integers(len(POSITIONS))),
        jitter=(int(row), int(column)),
    )


def _apart(one: SceneObject, other: SceneObject) -> bool:
    (row, column), (other_row, other_column) = one.centre, other.centre
    distance = max(abs(row - other_row), abs(column - other_column))
    return one.position != other.position and distance >= SIZES[one.size] + SIZES[other.size] - _OVERLAP


def render(scene: Scene) -> np.ndarray:
    """Draw a scene with antialiased edges.

    Shapes: uint8 [32, 32, 3].
    """
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    image[:] = COLOURS[scene.background]
    for item in scene.objects:
        alpha = coverage(item)[..., None]
        image += alpha * (np.asarray(COLOURS[item.colour], dtype=np.float32) - image)
    return np.rint(image).astype(np.uint8)


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take a picture of a picture: light falling from one side, a soft lens, a noisy sensor.

    Shapes: uint8 [32, 32, 3], as the result.
    """
    axis = np.linspace(-1, 1, IMAGE_SIZE)
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.35)
    light = 1 - fall * (1 + np.cos(angle) * axis[:, None] + np.sin(angle) * axis[None, :]) / 2
    lit = image * light[..., None]
    padded = np.pad(lit, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    soft = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    noisy = soft + rng.normal(0, _SENSOR_NOISE, soft.shape)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)


def coverage(item: SceneObject) -> np.ndarray:
    """Give the share of every pixel that an object covers.

    Shapes: float32 [32, 32].
    """
    canvas = np.zeros((IMAGE_SIZE + 2 * _BOX, IMAGE_SIZE + 2 * _BOX), dtype=np.float32)
    row, column = item.centre
    canvas[row : row + 2 * _BOX, column : column + 2 * _BOX] = _stencil(item.shape, item.size)
    return canvas[_BOX:-_BOX, _BOX:-_BOX]


@cache
def _stencil(shape: str, size: str) -> np.ndarray:
    side = 2 * _BOX * _SUPERSAMPLING
    axis = ((np.arange(side) + 0.5) / _SUPERSAMPLING - _BOX) / SIZES[size]
    inside = _inside(shape, axis[:, None], axis[None, :]).astype(np.float32)
    return inside.reshape(2 * _BOX, _SUPERSAMPLING, 2 * _BOX, _SUPERSAMPLING).mean(axis=(1, 3))


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Test membership in a shape of half-extent 1, y pointing down."""
    radius, box = np.hypot(x, y), np.maximum(np.abs(x), np.abs(y))
    masks = {
        "circle": radius <= 1,
        "square": box <= 0.88,
        "triangle": (np.abs(x) <= (y + 1) / 2 * 1.05) & (y <= 0.9),
        "cross": (box <= 1) & (np.minimum(np.abs(x), np.abs(y)) <= 0.34),
        "ring": (radius <= 1.04) & (radius >= 0.5),
        "diamond": np.abs(x) + np.abs(y) <= 1.15,
    }
    return masks[shape]


def caption_long(scene: Scene) -> str:
    """Describe every attribute of every object and the background in one sentence."""
    phrases = " and ".join(object_phrase(item) for item in scene.objects)
    return f"{phrases} on a {scene.background} background"


def object_phrase(item: SceneObject) -> str:
    """Describe one object in full."""
    return f"a {item.size} {item.colour} {item.shape} at the {POSITIONS[item.position]}"


def caption_short(scene: Scene) -> str:
    """Name only the colour and shape of each object."""
    return " and ".join(f"{item.colour} {item.shape}" for item in scene.objects)


def vocabulary() -> tuple[str, ...]:
    """List every word that a caption can hold."""
    words = {"a", "and", "at", "the", "on", "background", *COLOURS, *SHAPES, *SIZES}
    words.update(word for position in POSITIONS for word in position.split())
    return tuple(sorted(words))


def attributes(scene: Scene) -> dict[str, str]:
    """Name what an attribute reader must recover; keys and values are those of `ATTRIBUTES`."""
    found = {"background": scene.background}
    for index, which in enumerate(("first", "second")):
        item = scene.objects[index] if index < len(scene.objects) else None
        found[f"{which}_shape"] = item.shape if item else NONE
        found[f"{which}_colour"] = item.colour if item else NONE
        found[f"{which}_size"] = item.size if item else NONE
        found[f"{which}_position"] = POSITIONS[item.position] if item else NONE
    return found


def patch_labels(scene: Scene, grid: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Name the colour and shape that cover most of each patch; class 0 is the background.

    Shapes: two int64 [grid, grid]; colour classes 1..8 and shape classes 1..6 follow COLOURS and SHAPES.
    """
    patch = IMAGE_SIZE // grid
    shares = [np.zeros((grid, grid), dtype=np.float32)]
    for item in scene.objects:
        shares.append(coverage(item).reshape(grid, patch, grid, patch).mean(axis=(1, 3)))
    shares[0] = 1 - np.sum(shares[1:], axis=0)
    owner = np.argmax(np.stack(shares), axis=0)
    colours = [0, *(1 + tuple(COLOURS).index(item.colour) for item in scene.objects)]
    shapes = [0, *(1 + SHAPES.index(item.shape) for item in scene.objects)]
    return np.asarray(colours, dtype=np.int64)[owner], np.asarray(shapes, dtype=np.int64)[owner]
