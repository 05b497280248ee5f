"""The detector door: the only place where a detector's name decides."""

import hashlib
from pathlib import Path

import numpy as np

from star.config import Scorers
from star.scoring.detection import Detector, Golden
from star.scoring.rules import TAGS


def make_detector(scorers: Scorers) -> Detector:
    """The detector of `scorers`: miniature, mask2former or mmdet, the latter two with CLIP's colours.

    Raises InputError when weights are missing and ScorerFailed when the colours are wrong on drawn discs.
    """
    if scorers.detector == "miniature":
        return _miniature()
    from star.scoring import golden
    from star.scoring.colors import ClipColors

    if scorers.detector == "mask2former":
        from star.scoring.mask2former import Mask2Former as Eyes
    else:
        from star.scoring.mmdetection import MMDetector as Eyes
    answers = golden.read(Path(scorers.detector_golden)) if scorers.detector_golden else golden.portrait()
    eyes = Eyes(scorers)
    colors = ClipColors(scorers)
    if not scorers.detector_golden:
        golden.check_colors(colors)
    return Detector(eyes.detect, colors, f"{eyes.fingerprint} {colors.fingerprint}", answers, eyes.classes)


def all_classes() -> frozenset[str]:
    """Every class that one of the detectors can find under its own labels: GenEval's 80, and the miniature's shapes."""
    from star.worlds.coco.geneval import CLASSES
    from star.worlds.miniature.scenes import SHAPES

    return frozenset((*CLASSES, *SHAPES))


def _miniature() -> Detector:
    """The analytic detector of the miniature world; golden is one drawn picture a tag."""
    from star.worlds.miniature import detector, scenes
    from star.worlds.miniature.captions import descriptions

    rng, golden = np.random.default_rng(0), []
    for tag in TAGS:
        description = next(descriptions(tag))
        golden.append(Golden(tag, scenes.render(scenes.compose(description, rng)), description))
    sources = b"".join(Path(module.__file__).read_bytes() for module in (detector, scenes))
    return Detector(
        lambda images: [detector.detect(image) for image in images],
        lambda pairs: [detector.color_of(image, detection) for image, detection in pairs],
        f"miniature@{hashlib.sha256(sources).hexdigest()[:12]}",
        golden,
        frozenset(scenes.SHAPES),
    )
