"""The colour of a detected object by CLIP (arXiv 2103.00020), as GenEval's evaluator asks for it.

Shapes: B crops, P colours, T templates, D projection width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from star.config import Scorers
from star.errors import ScorerFailed
from star.hub.weights import PRECISIONS, digest, load, load_model, load_tokenizer, resolve
from star.scoring import sources
from star.scoring.detection import COLORS, Detected

TEMPLATES = ("a photo of a {color} {cls}", "a photo of a {color}-colored {cls}", "a photo of a {color} object")
OUTSIDE = 0x99  # grey of the pixels outside the mask
NO_COLOR = "none"  # of an object without a visible pixel
_BATCH = 32
# transformers 4, which the mmdet environment has, calls the same class by the shorter name
_Processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def crop(image: np.ndarray, detection: Detected) -> np.ndarray | None:
    """The box of a detection cut out of `image`, uint8 [h, w, 3], grey outside its mask, black beyond the picture.

    None where nothing is left: the box has no width or height within the picture, or the mask is empty inside it. The
    official evaluator, which pads in black too, would fail there or name a colour of nothing.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (round(float(v)) for v in detection.box)
    rows, columns = slice(max(y1, 0), max(min(y2, height), 0)), slice(max(x1, 0), max(min(x2, width), 0))
    mask = detection.mask[rows, columns]
    if not mask.any():
        return None
    seen = np.where(mask[..., None], image[rows, columns], np.uint8(OUTSIDE))
    beyond = ((rows.start - y1, y2 - rows.stop), (columns.start - x1, x2 - columns.stop), (0, 0))
    return np.pad(seen, beyond)


def _unit(output: object) -> torch.Tensor:
    """Normalised projections; transformers before 5 returned them bare, since then in an output object."""
    return F.normalize((output if isinstance(output, torch.Tensor) else output.pooler_output).float(), dim=-1)


class ClipColors:
    """Called with (picture, detection) pairs, names one of the ten colours each; source: GenEval's evaluator."""

    def __init__(self, scorers: Scorers) -> None:
        source = sources.colors(scorers)
        model = load_model(transformers.CLIPModel, source)
        self._tokenizer = load_tokenizer(transformers.CLIPTokenizer, source, model)
        self._images = load(_Processor, source)
        self.fingerprint = f"color={source.name}@{digest(model)}"
        self._device, self._dtype = resolve(scorers.device), PRECISIONS[scorers.geneval.precision]
        self._model = model.to(self._device, self._dtype)
        self._classes: dict[str, torch.Tensor] = {}

    def __call__(self, pairs: Sequence[tuple[np.ndarray, Detected]]) -> list[str]:
        """The colours of detections in uint8 [H, W, 3] pictures; "none" where no pixel of the object is in its box.

        Raises ScorerFailed when the model's outputs are not finite.
        """
        crops = [crop(image, detection) for image, detection in pairs]
        seen = [i for i, c in enumerate(crops) if c is not None]
        named = [NO_COLOR] * len(pairs)
        for start in range(0, len(seen), _BATCH):
            rows = seen[start : start + _BATCH]
            for i, image_D in zip(rows, self._pictures([crops[i] for i in rows]), strict=True):
                named[i] = COLORS[int((self._class(pairs[i][1].cls) @ image_D).argmax())]
        return named

    @torch.inference_mode()
    def _class(self, cls: str) -> torch.Tensor:
        """The ten colours of a class, [P, D]: unit text embeddings, averaged over the templates, made unit again."""
        if cls not in self._classes:
            texts = [template.format(color=color, cls=cls) for color in COLORS for template in TEMPLATES]
            length = self._model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            texts_PTD = _unit(self._model.get_text_features(**tokens.to(self._device))).unflatten(0, (len(COLORS), -1))
            self._classes[cls] = F.normalize(texts_PTD.mean(1), dim=-1)
        return self._classes[cls]

    @torch.inference_mode()
    def _pictures(self, crops: list[np.ndarray]) -> torch.Tensor:
        pixels = self._images(crops, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        images_BD = _unit(self._model.get_image_features(pixel_values=pixels.to(self._device, self._dtype)))
        if not images_BD.isfinite().all():
            raise ScorerFailed("the colour model's outputs are not finite; set scorers.geneval.precision to float32")
        return images_BD
