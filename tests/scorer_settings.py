"""The section `scorers` for tests, written flat."""

from star.config import Scorers


def scorers(**settings: object) -> Scorers:
    """`scorers(ocr_engine="rapidocr", device="cpu")` is `scorers: {ocr: {engine: rapidocr}, device: cpu}`."""
    nested: dict = {}
    for name, value in settings.items():
        scorer, _, key = name.partition("_")
        if key:
            nested.setdefault(scorer, {})[key] = value
        else:
            nested[name] = value
    return Scorers.model_validate(nested)
