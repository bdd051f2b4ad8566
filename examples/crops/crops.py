"""The custom node between a detector and a classifier: cuts what was found out of the picture."""

import cv2
import numpy as np


def crop_boxes(inputs: dict[str, np.ndarray], params: dict[str, str]) -> dict[str, np.ndarray]:
    """Crops of a picture, `image` uint8 [1, H, W, 3], for its `boxes` [1, N, 4] of ymin, xmin,
    ymax, xmax in 0..1 and `scores` [1, N].

    Kept are the K boxes whose score is at least params["confidence"], in their order: `crops`
    float32 [K, 1, size, size, 3] of 0..255 with params["size"], and `boxes` float32 [K, 1, 4]. K
    may be 0.
    """
    size = int(params["size"])
    picture = inputs["image"][0]
    boxes = inputs["boxes"][0][inputs["scores"][0] >= float(params["confidence"])]
    crops = np.empty((len(boxes), 1, size, size, 3), np.float32)
    for crop, edges in zip(crops, find_edges(boxes, *picture.shape[:2]).tolist()):
        top, left, bottom, right = edges
        crop[0] = cv2.resize(
            picture[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA
        )
    return {"crops": crops, "boxes": boxes[:, np.newaxis]}


def find_edges(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [K, 4] of 0..1 as rows and columns int [K, 4] of a picture: first ones,
    and those after the last; a pixel at least.
    """
    sides = np.array([height, width])
    first = np.clip(np.floor(boxes[:, :2] * sides), 0, sides - 1)
    last = np.clip(np.ceil(boxes[:, 2:] * sides), first + 1, sides)
    return np.concatenate([first, last], axis=1).astype(int)
