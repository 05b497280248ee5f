"""Mask2Former (arXiv 2112.01527) as GenEval's detector, with the published weights of transformers.

GenEval's own weights need mmdet; these are the same architecture trained by its authors, so scores are close, not identical.
Post-processing is that of GenEval's evaluator, which transformers does not offer: it makes masks at 384 x 384, lets the queries
compete, and scores them without their masks.

Shapes: B pictures, Q queries, C classes, h w of the mask logits, H W of the picture, K detections.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import transformers

from star.config import Scorers
from star.errors import ScorerFailed
from star.hub.weights import PRECISIONS, digest, load, load_model, resolve
from star.scoring import sources
from star.scoring.detection import RENAMED, THRESHOLD, Detection

TOP = 100
_LONGEST = 1333 / 800  # longest side to shortest, as in the evaluator's test pipeline


def instances(
    classes_QC1: torch.Tensor,
    masks_Qhw: torch.Tensor,
    labels: Sequence[str],
    inputs: tuple[int, int],
    size: tuple[int, int],
    floor: float = THRESHOLD,
) -> list[Detection]:
    """The detections of one picture of `size` (H, W) that the model saw at `inputs` (height, width); best first.

    The last class is "no object". The best 100 pairs of query and class; mask where its logit is above 0; score is the class
    probability times the mean sigmoid inside the mask; tight box, ends exclusive. A score never exceeds its class
    probability, so pairs at or below `floor` are dropped before their masks are made. An empty mask is no detection (its
    score would be 0). Source: GenEval's evaluator (mmdet's MaskFormerFusionHead).
    """
    probability_QC = classes_QC1.float().softmax(-1)[:, :-1]
    best = probability_QC.flatten().topk(min(TOP, probability_QC.numel()))
    kept = best.values > floor
    probability_K, pair_K = best.values[kept], best.indices[kept]
    if not len(pair_K):
        return []
    queries, which_K = (pair_K // probability_QC.shape[1]).unique(return_inverse=True)
    logits = F.interpolate(masks_Qhw[queries][None].float(), inputs, mode="bilinear", align_corners=False)
    logits_QHW = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    inside_QHW = logits_QHW > 0
    area_Q = inside_QHW.sum((1, 2))
    quality_Q = (logits_QHW.sigmoid() * inside_QHW).sum((1, 2)) / area_Q.clamp(min=1)
    score_K = probability_K * quality_Q[which_K]
    masks, found = inside_QHW.cpu().numpy(), []
    for k in score_K.argsort(descending=True, stable=True).tolist():
        mask = masks[which_K[k]]
        if mask.any():
            xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
            found.append(Detection(labels[pair_K[k] % probability_QC.shape[1]], box, score_K[k].item(), mask))
    return found


class Mask2Former:
    """The detector of `scorers.geneval.model`; `classes` are GenEval's names of what it knows."""

    def __init__(self, scorers: Scorers) -> None:
        source, size = sources.detector(scorers), scorers.geneval.size
        model = load_model(transformers.Mask2FormerForUniversalSegmentation, source)
        resized = {"size": {"shortest_edge": size, "longest_edge": int(size * _LONGEST)}}
        self._processor = load(transformers.Mask2FormerImageProcessorPil, source, **resized)
        weights = digest(model)
        self._dtype, self._device, self._batch = (
            PRECISIONS[scorers.geneval.precision],
            resolve(scorers.device),
            scorers.geneval.batch,
        )
        self._model = model.to(self._device, self._dtype)
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self._labels = [RENAMED.get(name, name) for name in names]
        self.classes = frozenset(self._labels)
        self.fingerprint = (
            f"mask2former {source.name}@{weights} size={size} {scorers.geneval.precision} {self._device} "
            f"transformers-{transformers.__version__} torch-{torch.__version__} pillow-{PIL.__version__}"
        )

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections above GenEval's lower threshold in uint8 [H, W, 3] pictures, best first.

        Only pictures of one size share a batch, so that none is padded and a score does not depend on its company. Raises
        ScorerFailed when the model's outputs are not finite.
        """
        by_size = defaultdict(list)
        for i, image in enumerate(images):
            by_size[image.shape[:2]].append(i)
        found: list[list[Detection]] = [[] for _ in images]
        for size, rows in by_size.items():
            for start in range(0, len(rows), self._batch):
                batch = rows[start : start + self._batch]
                for i, seen in zip(batch, self._batch_of([images[i] for i in batch], size), strict=True):
                    found[i] = seen
        return found

    @torch.inference_mode()
    def _batch_of(self, images: list[np.ndarray], size: tuple[int, int]) -> list[list[Detection]]:
        pixels = self._processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        seen = self._model(pixel_values=pixels.to(self._device, self._dtype))
        classes_BQC1, masks_BQhw = seen.class_queries_logits, seen.masks_queries_logits
        if not (classes_BQC1.isfinite().all() and masks_BQhw.isfinite().all()):
            raise ScorerFailed("the detector's outputs are not finite; set scorers.geneval.precision to float32")
        inputs = tuple(pixels.shape[-2:])
        return [instances(c, m, self._labels, inputs, size) for c, m in zip(classes_BQC1, masks_BQhw, strict=True)]
