"""`difflens scenes`: a data set of pictures composed of cut-out objects, with the exact mask of each object.

images/{train,val}/00000.png
masks/{train,val}/00000.png             semantic masks as palette images: 0 is background, k the k-th class
annotations/instances_{train,val}.json  COCO's format; masks are run lengths of an object's visible pixels
classes.txt                             one name a line, in the order of the values in the masks
"""

import json

from difflens.configs.options import recorded, resolve
from difflens.configs.scenes import ScenesConfig
from difflens.data.dense.base import IGNORED
from difflens.data.dense.cutouts import fashion_cutouts, folder_cutouts
from difflens.data.dense.masks import BACKGROUND
from difflens.data.dense.scenes import ScenePainter, ScenePhotos
from difflens.errors import DiffLensError, counted, expanded
from difflens.results.scenes import ScenesResult, SplitCounts
from difflens.run.directory import RunDirectory


def scenes(config: ScenesConfig) -> ScenesResult:
    """Write the data set. A scene is a function of (seed, split, number of the scene) and the source.

    Raises:
        DiffLensError: there are no cut-outs, too many classes or too few photos, or the folder is not empty.
    """
    config = resolve(config)
    folder = expanded(config.source)
    cutouts = fashion_cutouts() if config.source == "fashion" else folder_cutouts(folder)
    if len(cutouts.classes) >= IGNORED - 1:  # the background is a class of the masks, too
        raise DiffLensError(
            f"{config.source} has {counted(len(cutouts.classes), 'class')}: masks of 8 bits hold at most "
            f"{IGNORED - 2}"
        )
    photos = ScenePhotos(config.photos) if config.photos else None
    counts: dict[str, SplitCounts] = {}
    run = RunDirectory(config.out, "scenes", recorded(config), resume=None)
    with run.working():
        painter = ScenePainter(config, cutouts, photos)
        for split, number in (("train", config.train), ("val", config.val)):
            annotations = painter.write(run, split, number)
            parts = sum(map(len, getattr(cutouts, split)))
            counts[split] = SplitCounts(number, len(annotations["annotations"]), parts)
            run.write(f"annotations/instances_{split}.json", json.dumps(annotations) + "\n")
        run.write("classes.txt", "\n".join([BACKGROUND, *cutouts.classes]) + "\n")
        result = ScenesResult(
            out=config.out, classes=tuple(cutouts.classes), **counts, skipped=tuple(cutouts.left_out)
        )
        run.write_json("scenes.json", result.metrics())
    return result
