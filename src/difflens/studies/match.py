"""`difflens match`: points of one picture in another, by the similarity of features."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from difflens.configs.command_line import shown_command
from difflens.configs.match import MatchConfig
from difflens.configs.options import given, resolve
from difflens.data.changes import say_changes
from difflens.data.images import read_image
from difflens.data.pairs import Pair, PairSet, load_pairs_of_points
from difflens.data.pictures import PictureFiles
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted
from difflens.metrics.correspondence import correct, locate, sample, similarity_maps
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.reports.match import keypoint_report, match_figure, match_report
from difflens.reports.png import write_png
from difflens.results.match import KeypointResult, KeypointScore, MatchedPoint, MatchResult, Point
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.text import csv_text
from difflens.studies.whole_pictures import WholePictures

_FINEST = 256  # positions along a side that are compared, at least
_AT_ONCE = 2**26  # values of similarity maps


def match(config: MatchConfig) -> MatchResult | KeypointResult:
    """Find points of one picture in another, or measure how many known points of pairs are found.

    Writes match.png for two pictures or pairs.csv for a data set, and report.html.

    Raises:
        DiffLensError: an option is out of range, a picture cannot be read or does not hold a point, the data
            has another layout, or the backbone has no such place or does not take pictures of this size.
    """
    config = resolve(config)
    if config.data is not None:
        data = load_pairs_of_points(config.data, config.split, config.limit, config.seed)
        config = with_backbone(config, FileSplit("pictures", [str(data.pairs[0].source)]))
        pairs = open_run(config, data, one_process="")
        matcher = Matcher(pairs)
        with pairs.directory() as run:
            return _match_data(pairs, matcher, run)
    images = [read_image(path) for path in config.pictures]
    points = _points(config, images[0])
    files = PictureFiles("two pictures", config.pictures)
    split = FileSplit("pictures", [str(path) for path in config.pictures])
    config = with_backbone(config, split)
    opened = open_run(config, files, one_process="")
    matcher = Matcher(opened)
    say_changes(split, given(config.backbone), matcher.reader.backbone.in_channels, matcher.reader.side)
    with opened.directory() as run:
        return _match_pictures(opened, matcher, images, points, run)


class Matcher:
    """Finds positions of one picture in another."""

    def __init__(self, opened: OpenedRun[PictureFiles] | OpenedRun[PairSet]):
        config: MatchConfig = opened.config
        backbone = opened.move_backbone()
        self.config = config
        self.reader = WholePictures(backbone, config, config.decided_precision, config.seed)
        self.resolution = max(_FINEST, self.reader.side)

    def find(self, source: Tensor, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most similar position to each point, (P, 2) in [0, 1], and its cosine, (P,).

        Args:
            source, target: feature maps, (C, H, W).
            points: (P, 2) in [0, 1].
        """
        config = self.config
        found, scores = [], []
        cells = max(target.shape[-2:])
        for chunk in points.split(max(1, _AT_ONCE // self.resolution**2)):
            maps = similarity_maps(sample(source, chunk), target, self.resolution)
            where, score = locate(
                maps, config.estimate, config.temperature or 1.0, (config.window or 1.0) / cells
            )
            found.append(where.cpu())
            scores.append(score.cpu())
        return torch.cat(found), torch.cat(scores)


def to_shares(points: Sequence[Point], size: tuple[int, int]) -> Tensor:
    """Return points in pixels of a picture of (width, height) as positions, (P, 2) in [0, 1]."""
    return (torch.tensor(points, dtype=torch.float32).reshape(-1, 2) + 0.5) / torch.tensor(size)


def to_pixels(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Return positions, (P, 2) in [0, 1], in pixels of a picture of (width, height)."""
    return positions * torch.tensor(size) - 0.5


def _points(config: MatchConfig, image: Tensor) -> list[Point]:
    """Return the points that are searched, in pixels of the first picture."""
    height, width = image.shape[-2:]
    if not config.points:
        steps = [(k + 0.5) / config.grid for k in range(config.grid)]
        return [(x * width - 0.5, y * height - 0.5) for y in steps for x in steps]
    points = []
    for text in config.points:
        parts = text.split(",")
        try:
            x, y = map(float, parts)
        except ValueError:
            raise DiffLensError(f"--points has {text!r}; expected x,y in pixels, such as 120,80") from None
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):  # NaN is outside too
            raise DiffLensError(
                f"--points has {text}, outside {config.pictures[0]}: x goes from 0 to {width - 1}, "
                f"y from 0 to {height - 1}"
            )
        points.append((x, y))
    return points


def _match_pictures(
    opened: OpenedRun[PictureFiles],
    matcher: Matcher,
    images: Sequence[Tensor],
    points: Sequence[Point],
    run: RunDirectory,
) -> MatchResult:
    config, reader = matcher.config, matcher.reader
    sizes = [(int(image.shape[-1]), int(image.shape[-2])) for image in images]
    first, second = (reader.map(image, number) for number, image in enumerate(images))
    asked = to_shares(points, sizes[0])
    found, scores = matcher.find(first, second, asked)
    returned, _ = matcher.find(second, first, found)
    cell = torch.tensor([1 / first.shape[-1], 1 / first.shape[-2]])
    mutual = ((returned - asked).abs() <= cell).all(dim=1)
    matches = [
        MatchedPoint(point, there, round(score, 4), back, both)
        for point, there, score, back, both in zip(
            _rounded(to_pixels(asked, sizes[0])),
            _rounded(to_pixels(found, sizes[1])),
            scores.tolist(),
            _rounded(to_pixels(returned, sizes[0])),
            mutual.tolist(),
            strict=True,
        )
    ]
    if config.mutual or not config.points:
        matches = [each for each in matches if each.mutual]
    result = MatchResult(
        out=config.out,
        pictures=(str(config.pictures[0]), str(config.pictures[1])),
        sizes=(sizes[0], sizes[1]),
        block=reader.block,
        noise_step=reader.noise_step,
        matches=tuple(matches),
    )
    figure = match_figure(images[0], images[1], matches)
    run.write_with("match.png", partial(write_png, figure))
    report = match_report(
        figure=figure,
        result=result,
        asked=len(points),
        place=reader.describe(),
        provenance=_provenance(opened, matcher),
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _rounded(points: Tensor) -> list[Point]:
    return [(round(x, 2), round(y, 2)) for x, y in points.tolist()]


def _match_data(opened: OpenedRun[PairSet], matcher: Matcher, run: RunDirectory) -> KeypointResult:
    config, reader, pairs = matcher.config, matcher.reader, opened.data.pairs
    numbers: dict[Path, int] = {}
    for pair in pairs:
        numbers.setdefault(pair.source, len(numbers))
        numbers.setdefault(pair.target, len(numbers))
    right: list[tuple[Pair, Tensor, Tensor]] = []
    lines: list[list[object]] = [["pair", "class", "points", "box", "image"]]
    maps: dict[Path, Tensor] = {}
    label = ""
    sizes: dict[Path, tuple[int, int]] = {}
    with progress_bar() as bar:
        task = bar.add_task("pairs", total=len(pairs), note="")
        for pair in pairs:
            if pair.label != label:  # a class's pictures stand in its pairs alone
                maps, sizes, label = {}, {}, pair.label
            for path in (pair.source, pair.target):
                if path not in maps:
                    image = read_image(path)
                    features = reader.map(image, numbers[path])
                    # cosines do not change with the length, and float16 does not hold all lengths
                    maps[path] = (features / features.abs().max().clamp(min=1e-12)).half()
                    sizes[path] = int(image.shape[-1]), int(image.shape[-2])
            source, target = maps[pair.source].float(), maps[pair.target].float()
            found, _ = matcher.find(source, target, to_shares(pair.source_points, sizes[pair.source]))
            places = to_pixels(found, pair.target_size)
            true = torch.tensor(pair.target_points)
            by_box = correct(places, true, pair.box_length, config.alpha)
            by_image = correct(places, true, max(pair.target_size), config.alpha)
            right.append((pair, by_box, by_image))
            lines.append([pair.name, label, len(true), int(by_box.sum()), int(by_image.sum())])
            bar.update(task, advance=1)
    labels = dict.fromkeys(pair.label for pair in pairs)
    result = KeypointResult(
        out=config.out,
        alpha=config.alpha,
        block=reader.block,
        noise_step=reader.noise_step,
        overall=_score(right),
        classes={name: _score([each for each in right if each[0].label == name]) for name in labels},
    )
    run.write("pairs.csv", csv_text(lines))
    report = keypoint_report(
        result=result,
        data=opened.data.name,
        place=reader.describe(),
        provenance=_provenance(opened, matcher),
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _score(right: Sequence[tuple[Pair, Tensor, Tensor]]) -> KeypointScore:
    box = [each.double() for _, each, _ in right]
    image = [each.double() for _, _, each in right]
    return KeypointScore(
        pairs=len(right),
        points=sum(map(len, box)),
        box=float(torch.cat(box).mean()),
        image=float(torch.cat(image).mean()),
        box_by_pair=math.fsum(float(each.mean()) for each in box) / len(box),
        image_by_pair=math.fsum(float(each.mean()) for each in image) / len(image),
    )


def _provenance(
    opened: OpenedRun[PictureFiles] | OpenedRun[PairSet], matcher: Matcher
) -> Mapping[str, object]:
    config, reader = matcher.config, matcher.reader
    return {
        "Command": shown_command(config),
        "Features": f"{reader.describe()}, mean of {counted(given(config.draws), 'noise draw')}",
        "Pictures as read": f"resized to squares of {reader.side} pixels, as a whole",
        "Seed": config.seed,
        **opened.provenance(),
    }
