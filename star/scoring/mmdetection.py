"""GenEval's own detector: Mask2Former Swin-S with mmdet's weights, in the environment of envs/mmdet.yaml.

Not run by the project's tests: mmcv's compiled operators exist for no current torch. What is tested is the translation of its
results; the calls follow mmdet 3.3's documentation.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from star.config import Scorers
from star.errors import InputError
from star.files import sha256
from star.scoring.detection import RENAMED, Detection

_CONFIG = ".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
CHECKPOINT = "c9d0c4f2"  # how the SHA-256 of the weights begins that GenEval's evaluator downloads; their file name says it


def translate(instances: object, classes: Sequence[str]) -> list[Detection]:
    """mmdet's `pred_instances` (labels, bboxes, scores, masks, as tensors [K, ...]) as detections; empty masks are dropped."""
    parts = (getattr(instances, name).cpu().numpy() for name in ("labels", "bboxes", "scores", "masks"))
    return [
        Detection(classes[int(label)], tuple(map(float, box)), float(score), mask.astype(bool))
        for label, box, score, mask in zip(*parts, strict=True)
        if mask.any()
    ]


def checkpoint_digest(checkpoint: Path) -> str:
    """The SHA-256 of GenEval's checkpoint. Raises InputError for any other file: it is a pickle, and opened by mmdet."""
    if not checkpoint.is_file():
        raise InputError(
            f"scorers.geneval.model: {checkpoint} is no file; for `detector: mmdet` give the .pth file that GenEval's "
            f"evaluation/download_models.sh fetches"
        )
    digest = sha256(checkpoint)
    if not digest.startswith(CHECKPOINT):
        raise InputError(f"scorers.geneval.model: {checkpoint} is not GenEval's checkpoint (SHA-256 {CHECKPOINT}...)")
    return digest


def found(checkpoint: str) -> str:
    """What `star doctor` says of the checkpoint. Raises InputError as `checkpoint_digest`."""
    return f"{checkpoint}, SHA-256 {checkpoint_digest(Path(checkpoint))[:12]}"


class MMDetector:
    """The detector of the checkpoint file `scorers.geneval.model`; `classes` are GenEval's names of what it knows."""

    def __init__(self, scorers: Scorers) -> None:
        checkpoint = Path(scorers.geneval.model)
        digest = checkpoint_digest(checkpoint)
        try:
            import mmdet
            from mmdet.apis import inference_detector, init_detector
        except ImportError as error:
            raise InputError(
                f"scorers.geneval.detector: mmdet cannot be imported ({error}); run in the environment of envs/mmdet.yaml, "
                "or take mask2former"
            ) from None
        from star.hub.weights import resolve

        device = resolve(scorers.device)
        config = Path(mmdet.__file__).parent / _CONFIG
        self._model, self._infer = init_detector(str(config), str(checkpoint), device=device), inference_detector
        self._labels = [RENAMED.get(name, name) for name in self._model.dataset_meta["classes"]]
        self.classes = frozenset(self._labels)
        versions = " ".join(f"{name}-{version(name)}" for name in ("mmdet", "mmcv", "torch"))
        self.fingerprint = f"mmdet {checkpoint.name}@{digest[:12]} {device} {versions}"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections in uint8 [H, W, 3] pictures (RGB; mmdet takes BGR)."""
        seen = (self._infer(self._model, np.ascontiguousarray(image[..., ::-1])) for image in images)
        return [translate(result.pred_instances, self._labels) for result in seen]
