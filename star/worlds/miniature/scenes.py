"""The miniature world: what a description means as a picture.

A *description* is a dict with GenEval's metadata keys (`include`: class, count, color, position; `exclude`) and two of our
own: `background` ("dark" or absent) and `text` with its `carrier`. `compose` draws a `Scene` that satisfies a description;
`render` paints it and returns the true mask of every object. Source: ours (GenEval's metadata format, arXiv 2310.11513).
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {
    "red": (215, 40, 40),
    "green": (35, 160, 60),
    "blue": (40, 85, 220),
    "yellow": (235, 200, 20),
    "purple": (150, 50, 190),
}
RELATIONS = ("left of", "right of", "above", "below")
CARRIERS = {  # plate, ink
    "sign": ((250, 250, 250), (20, 20, 20)),
    "board": (((55, 60, 65)), (245, 245, 245)),
    "card": ((245, 225, 150), (30, 30, 60)),
}
LETTERS = "ACELPTUX"  # no look-alikes: O/0 or I/1 are told apart by a recogniser only in context
PLATE = (28.0, 16.0)  # half width and half height, in pixels
_SUPERSAMPLE = 4
_AXIS_OF = {"left of": "row", "right of": "row", "above": "column", "below": "column"}


@dataclass(frozen=True)
class Object:
    """A shape of radius `r` at centre (x, y), in pixels."""

    shape: str
    color: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """Objects and at most one lettered plate on a grey background of level `background` (0..255)."""

    objects: tuple[Object, ...]
    background: int
    text: str | None = None
    carrier: str | None = None
    text_xy: tuple[float, float] = (SIZE / 2, SIZE / 2)


def _slots(n: int, axis: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    near, mid, far = 17.0, SIZE / 2, SIZE - 17.0
    if n == 1:
        return [tuple(mid + rng.uniform(-8, 8, 2))]
    if n == 2:
        across = rng.uniform(-4, 4)
        centres = [(near, mid + across), (far, mid + across)]
        centres = centres if axis == "row" else [(y, x) for x, y in centres]
    else:
        centres = [(x, y) for y in (near, far) for x in (near, far)]
        if n == 3:
            centres.pop(int(rng.integers(4)))
    return [(x + rng.uniform(-2, 2), y + rng.uniform(-2, 2)) for x, y in centres]


def compose(description: dict, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies `description` (at most four objects).

    Raises ValueError when the description asks for more objects than there are places.
    """
    background = int(rng.integers(25, 50) if description.get("background") == "dark" else rng.integers(220, 245))
    if "text" in description:
        xy = tuple(SIZE / 2 + rng.uniform(-3, 3, 2))
        return Scene((), background, description["text"], description["carrier"], xy)
    wanted, relation = [], None
    for item in description["include"]:
        color = item.get("color") or str(rng.choice(list(COLORS)))
        wanted += [(item["class"], color)] * item["count"]
        relation = item.get("position", [relation])[0]
    n = len(wanted)
    if not 1 <= n <= 4:
        raise ValueError(f"a scene holds one to four objects, not {n}: {description}")
    slots = _slots(n, _AXIS_OF.get(relation) or str(rng.choice(["row", "column"])), rng)
    if relation is None:
        rng.shuffle(slots)
    elif relation in ("left of", "above"):
        slots.reverse()  # include is [B, A with (relation, 0)]: B comes first and lies right of, or below, A
    r = rng.uniform(11, 14) if n == 1 else rng.uniform(9.5, 12.5) if n == 2 else rng.uniform(9.5, 12)
    objects = tuple(Object(s, c, float(x), float(y), float(r)) for (s, c), (x, y) in zip(wanted, slots, strict=True))
    return Scene(objects, background)


def _paint(draw: ImageDraw.ImageDraw, o: Object, ink: object, hole: object) -> None:
    s = _SUPERSAMPLE
    x, y, r = o.x * s, o.y * s, o.r * s
    if o.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif o.shape == "square":
        h = 0.88 * r
        draw.rectangle((x - h, y - h, x + h, y + h), fill=ink)
    elif o.shape == "triangle":
        draw.polygon(((x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)), fill=ink)
    elif o.shape == "cross":
        w = 0.33 * r
        draw.rectangle((x - r, y - w, x + r, y + w), fill=ink)
        draw.rectangle((x - w, y - r, x + w, y + r), fill=ink)
    elif o.shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        h = 0.5 * r
        draw.ellipse((x - h, y - h, x + h, y + h), fill=hole)
    else:
        raise ValueError(f"unknown shape {o.shape!r}; known: {', '.join(SHAPES)}")


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono-Bold.ttf")
    return ImageFont.truetype(path, 27 * _SUPERSAMPLE)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8 [SIZE, SIZE, 3]."""
    s = _SUPERSAMPLE
    ground = (scene.background,) * 3
    canvas = Image.new("RGB", (SIZE * s, SIZE * s), ground)
    draw = ImageDraw.Draw(canvas)
    for o in scene.objects:
        _paint(draw, o, COLORS[o.color], ground)
    if scene.text is not None:
        plate, ink = CARRIERS[scene.carrier]
        x, y = (v * s for v in scene.text_xy)
        w, h = PLATE[0] * s, PLATE[1] * s
        draw.rounded_rectangle((x - w, y - h, x + w, y + h), radius=4 * s, fill=plate, outline=(90, 90, 90), width=s)
        draw.text((x, y), scene.text, font=_font(), fill=ink, anchor="mm")
    return np.asarray(canvas.reduce(s))


def masks(scene: Scene) -> np.ndarray:
    """The true mask of every object, bool [objects, SIZE, SIZE]; the plate counts as the object of a lettered scene."""
    s = _SUPERSAMPLE
    found = []
    for o in scene.objects:
        canvas = Image.new("L", (SIZE * s, SIZE * s))
        _paint(ImageDraw.Draw(canvas), o, 255, 0)
        found.append(np.asarray(canvas.reduce(s)) > 127)
    if scene.text is not None:
        x, y = scene.text_xy
        ys, xs = np.mgrid[:SIZE, :SIZE] + 0.5
        found.append((abs(xs - x) <= PLATE[0]) & (abs(ys - y) <= PLATE[1]))
    return np.stack(found)
