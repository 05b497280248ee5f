"""Where each scorer's weights come from. Without torch, because Snakemake reads it at every start."""

from functools import partial

from star.config import Scorers
from star.errors import InputError
from star.hub.check import Package, Source
from star.worlds.door import own_detector


def of_scorer(name: str, scorers: Scorers) -> list[Source | Package]:
    """What the scorer `name` loads; nothing for a function of the user's own, a service or a judge."""
    if name == "geneval":
        return geneval(scorers)
    if name == "ocr":
        return [ocr(scorers)]
    if name == "pickscore":
        return [pickscore_model(scorers), pickscore_processor(scorers)]
    if name == "clipscore":
        return [clipscore(scorers)]
    if name == "hpsv2":
        return [hpsv2_model(scorers), hpsv2_processor(scorers)]
    if name == "imagereward":
        return [imagereward(scorers)]
    if name == "aesthetic":
        return [aesthetic(scorers)]
    return []


def geneval(scorers: Scorers) -> list[Source | Package]:
    """The detector and the model that names colours; the miniature's detector has no weights."""
    if own_detector(scorers.geneval.detector):
        return []
    chosen = detector if scorers.geneval.detector == "mask2former" else mmdet
    return [chosen(scorers), colors(scorers)]


def detector(scorers: Scorers) -> Source:
    """Mask2Former and its image processor."""
    return Source("scorers.geneval.model", scorers.geneval.model, scorers.geneval.revision, ("model", "images"))


def mmdet(scorers: Scorers) -> Package:
    """GenEval's own checkpoint, a file of its publication."""
    from star.scoring.mmdetection import found

    return Package("scorers.geneval.model", "mmdet", partial(found, scorers.geneval.model))


def colors(scorers: Scorers) -> Source:
    """The CLIP model of GenEval's colours."""
    return Source(
        "scorers.geneval.color_model",
        scorers.geneval.color_model,
        scorers.geneval.color_revision,
        ("model", "tokenizer", "images"),
    )


def ocr(scorers: Scorers) -> Package:
    """The text recogniser's weights: EasyOCR downloads its own, RapidOCR's lie in its package."""
    from star.scoring import engines

    if scorers.ocr.engine == "rapidocr":
        return Package("scorers.ocr.engine", "rapidocr", engines.rapidocr_found)
    fetch = None if scorers.ocr.weights else partial(engines.easyocr_fetched, scorers.ocr.mode, scorers.ocr.size)
    return Package("scorers.ocr.engine", "easyocr", partial(engines.easyocr_found, scorers.ocr.weights), fetch)


def pickscore_model(scorers: Scorers) -> Source:
    """The CLIP model whose score it is."""
    return Source("scorers.pickscore.model", scorers.pickscore.model, scorers.pickscore.revision, ("model",))


def pickscore_processor(scorers: Scorers) -> Source:
    """Its tokenizer and image processor, which PickScore's own repository lacks."""
    processor, revision = scorers.pickscore.processor, scorers.pickscore.processor_revision
    return Source("scorers.pickscore.processor", processor, revision, ("tokenizer", "images"))


def clipscore(scorers: Scorers) -> Source:
    """The CLIP model whose cosine it is, with its processor."""
    chosen = scorers.clipscore
    return Source("scorers.clipscore.model", chosen.model, chosen.revision, ("model", "tokenizer", "images"))


def hpsv2_model(scorers: Scorers) -> Source:
    """The CLIP model trained on people's choices. Raises InputError when none is named."""
    if scorers.hpsv2.model is None:
        raise InputError(
            "scorers.hpsv2.model: name a folder or repository with HPSv2's weights as a transformers CLIPModel; its authors "
            "publish them for open_clip only (docs/scorers.md)"
        )
    return Source("scorers.hpsv2.model", scorers.hpsv2.model, scorers.hpsv2.revision, ("model",))


def hpsv2_processor(scorers: Scorers) -> Source:
    """Tokenizer and image processor of the model that HPSv2 was trained from."""
    processor, revision = scorers.hpsv2.processor, scorers.hpsv2.processor_revision
    return Source("scorers.hpsv2.processor", processor, revision, ("tokenizer", "images"))


def imagereward(scorers: Scorers) -> Source:
    """The BLIP with ImageReward's head. Raises InputError when none is named."""
    if scorers.imagereward.model is None:
        raise InputError(
            "scorers.imagereward.model: name a folder or repository with ImageReward's weights under transformers' names of "
            "BLIP; its authors publish a pickle for their own package only (docs/scorers.md)"
        )
    return Source("scorers.imagereward.model", scorers.imagereward.model, scorers.imagereward.revision, ("model", "tokenizer"))


def aesthetic(scorers: Scorers) -> Source:
    """The vision tower with the head on it."""
    return Source("scorers.aesthetic.model", scorers.aesthetic.model, scorers.aesthetic.revision, ("model", "images"))
