"""The true object mask of a miniature picture: whatever is not ground. Source: ours.

Pictures of the world, drawn or generated, have objects or a plate on an even grey ground that reaches the border.
"""

import numpy as np
from scipy.ndimage import binary_fill_holes

from star.worlds.miniature.detector import detect

_DIFFERENT = 45  # of 255 in any channel; grounds vary by less, inks and plates differ by more


def region(picture: np.ndarray) -> np.ndarray:
    """True where `picture`, uint8 [height, width, 3], shows an object or a plate; bool [height, width].

    The ground is the median colour of the border. A picture without colours has a plate, whose face or letters may have the
    ground's grey: its holes are filled, those of coloured objects are not.
    """
    rgb = picture.astype(np.int16)
    ground = np.median(np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]), 0)
    different = (abs(rgb - ground) > _DIFFERENT).any(-1)
    coloured = (rgb.max(-1) - rgb.min(-1) > _DIFFERENT).any()
    return different if coloured else binary_fill_holes(different)


def region_of(picture: np.ndarray, metadata: dict) -> np.ndarray:
    """Where `picture` shows objects of the classes that `metadata` includes; the whole region where it shows none of them."""
    asked = {item["class"] for item in metadata["include"]}
    found = [seen.mask for seen in detect(picture) if seen.cls in asked]
    return np.any(found, 0) if found else region(picture)
