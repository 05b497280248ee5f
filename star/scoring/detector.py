"""The detector door: the only place where a detector's name decides."""

from pathlib import Path

from star.config import Scorers
from star.scoring.detection import Detector, Golden
from star.worlds.door import own_detector


def make_detector(scorers: Scorers) -> Detector:
    """The detector of `scorers`: a world's own one, or mask2former or mmdet, both with CLIP's colours.

    Raises InputError when weights are missing and ScorerFailed when the colours are wrong on drawn discs.
    """
    if own := own_detector(scorers.geneval.detector):
        return Detector(own.detect, own.colors_of, own.fingerprint, [Golden(*one) for one in own.golden], own.classes)
    from star.scoring import golden
    from star.scoring.colors import ClipColors

    if scorers.geneval.detector == "mask2former":
        from star.scoring.mask2former import Mask2Former as Eyes
    else:
        from star.scoring.mmdetection import MMDetector as Eyes
    answers = golden.read(Path(scorers.geneval.golden)) if scorers.geneval.golden else golden.portrait()
    eyes = Eyes(scorers)
    colors = ClipColors(scorers)
    if not scorers.geneval.golden:
        golden.check_colors(colors)
    return Detector(eyes.detect, colors, f"{eyes.fingerprint} {colors.fingerprint}", answers, eyes.classes)
