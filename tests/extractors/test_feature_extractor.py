"""`FeatureExtractor` as somebody else's code uses it."""

import copy
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import GaussianFourierProjection
from PIL import Image
from torch import Tensor, nn

from difflens import (
    DiffLensError,
    ExtractConfig,
    FeatureExtractor,
    FeatureStore,
    HeadConfig,
    Probe,
    ProbeConfig,
    extract,
    load_backbone,
    load_data,
    make_head,
    probe,
)
from difflens.backbones.base import Backbone
from difflens.data.images import BadImage
from difflens.noise import content_index
from difflens.run.console import note
from tests.helpers import every
from tests.helpers.families import write_ncsnpp
from tests.helpers.networks import make_backbone

PLACES = {"blocks": (4, 6), "noise_steps": (30,)}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A grey network for 16-pixel images: encoder 1-4, middle 5, decoder 6-9."""
    return make_backbone()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 1, 16, 16, generator=generator) * 2 - 1


def test_a_picture_becomes_maps_and_a_vector() -> None:
    extractor = FeatureExtractor("fashion", blocks=(18, 20), noise_steps=(5,))
    batch = extractor.transform(Image.new("RGB", (60, 40), "red"))[None]
    maps = extractor(batch)
    assert {place: each.shape for place, each in maps.items()} == {
        (18, 5): (1, 128, 8, 8),
        (20, 5): (1, 64, 16, 16),
    }
    assert extractor.channels == {(18, 5): 128, (20, 5): 64}
    assert extractor.strides == {(18, 5): 4, (20, 5): 2}
    assert extractor.shapes() == {place: each.shape[1:] for place, each in maps.items()}
    assert extractor.shapes(64)[18, 5] == (128, 16, 16)
    vectors = extractor.pooled(batch)
    assert vectors.shape == (1, extractor.num_features)
    joined = torch.cat([each.mean((2, 3)) for each in maps.values()], dim=1)
    torch.testing.assert_close(vectors, joined, atol=1e-4, rtol=1e-4)


def test_the_default_place_is_the_backbones(backbone: Backbone) -> None:
    assert FeatureExtractor(backbone).places == [(backbone.defaults.block, backbone.defaults.noise_step)]


def test_one_block_and_one_noise_step_are_numbers(backbone: Backbone) -> None:
    assert FeatureExtractor(backbone, 3, 7).places == [(3, 7)]
    assert FeatureExtractor(backbone, 3, (7, 9)).places == [(3, 7), (3, 9)]
    feedback = FeatureExtractor(backbone, 6, 7, extractor="feedback", feedback_blocks=8)
    assert feedback.extractor.feedback_blocks == (8,)


def test_an_image_is_anything_that_shows_one(tmp_path: Path, backbone: Backbone) -> None:
    transform = FeatureExtractor(backbone).transform
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8))
    picture.save(tmp_path / "1.png")
    expected = transform(picture)
    assert (expected.dtype, expected.shape) == (torch.float32, (1, 16, 16))
    assert torch.equal(transform(tmp_path / "1.png"), expected)
    assert torch.equal(transform(str(tmp_path / "1.png")), expected)
    assert torch.equal(transform(torch.from_numpy(np.array(picture))[None]), expected)
    assert torch.equal(transform(expected), expected)
    image, label = load_data("fashion").train[0]
    assert (transform(image).shape, label) == ((1, 16, 16), int(load_data("fashion").train.labels[0]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "there is no such file"),
        (Image.new("F", (4, 4)), "floating-point pixels have no defined range"),
        (np.zeros((4, 4), np.uint8), "not ndarray: PIL.Image.fromarray takes arrays"),
        (torch.zeros(1, 2, 101), "it has 101 x 2 pixels; the longer side is at most 50 times"),
        (torch.zeros(2, 4, 4), r"shape \(2, 4, 4\) is not \(C, H, W\)"),
        (torch.full((1, 4, 4), 255.0), r"lie in \[255, 255\]"),
        (torch.zeros(1, 4, 4, dtype=torch.long), "images of int64: they must be floating-point"),
    ],
    ids=["path", "mode", "array", "long", "channels", "range", "type"],
)
def test_what_is_no_image_is_refused_by_name(backbone: Backbone, image: Any, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        FeatureExtractor(backbone).transform(image)


def test_a_damaged_file_is_a_bad_image(tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "1.png").write_bytes(b"?")
    with pytest.raises(BadImage, match=r"1\.png: not an image"):
        FeatureExtractor(backbone).transform(tmp_path / "1.png")


def test_noise_is_the_images_own_whatever_its_batch(backbone: Backbone, images: Tensor) -> None:
    extractor = FeatureExtractor(backbone, **PLACES)
    together, order = extractor(images), torch.tensor([3, 0, 4])
    assert torch.equal(content_index(images)[order], content_index(images[order]))
    for place, maps in extractor(images[order]).items():
        torch.testing.assert_close(maps, together[place][order], atol=1e-5, rtol=1e-5)
    # one grey level in one pixel is another image, and half a rounding error is not
    other = images.clone()
    other[0, 0, 3, 3] -= 2 / 255 if images[0, 0, 3, 3] > 0 else -2 / 255
    assert content_index(other)[0] != content_index(images)[0]
    exact = (images * 127.5).round() / 127.5 - 1 / 255
    assert torch.equal(content_index(exact + 1e-6), content_index(exact))
    assert len(set(content_index(images).tolist())) == len(images)


def test_seed_and_draw_give_other_noise(backbone: Backbone, images: Tensor) -> None:
    extractor = FeatureExtractor(backbone, **PLACES)
    first = extractor(images)[6, 30]
    assert torch.equal(FeatureExtractor(backbone, **PLACES)(images)[6, 30], first)
    for other in (
        FeatureExtractor(backbone, **PLACES, seed=1)(images),
        extractor(images, draw=1),
        extractor(images, index=torch.arange(5)),
    ):
        assert not torch.allclose(other[6, 30], first, atol=1e-2)


@pytest.mark.parametrize("kind", ["frozen", "feedback", "finetuned"])
def test_no_image_gives_no_map(backbone: Backbone, kind: Any) -> None:
    extractor = FeatureExtractor(backbone, blocks=(4, 6), extractor=kind)
    none = torch.zeros(0, 1, 16, 16)
    assert {place: maps.shape[1:] for place, maps in extractor(none).items()} == extractor.shapes()
    assert extractor.pooled(none, index=torch.zeros(0, dtype=torch.long)).shape[0] == 0


def test_draws_are_averaged(backbone: Backbone, images: Tensor) -> None:
    single = FeatureExtractor(backbone, **PLACES)
    expected = sum(single(images, draw=number)[6, 30] for number in range(3)) / 3
    torch.testing.assert_close(FeatureExtractor(backbone, **PLACES, draws=3)(images)[6, 30], expected)


def test_the_index_of_a_store_gives_its_features_to_the_last_bit(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    stored = ExtractConfig(
        out=tmp_path / "store",
        data=str(image_tree),
        backbone=str(backbone_folder),
        **PLACES,
        seed=3,
        draws=2,
        limit=30,
        dtype="float32",
        device="cpu",
        workers=0,
    )
    extract(stored)
    store = FeatureStore(stored.out)
    extractor = FeatureExtractor(backbone_folder, **PLACES, seed=3, draws=2)
    names, index = store.ids("train"), store.index("train")
    assert index.tolist() != [*range(30)]  # a limited store keeps the noise of all images
    batch = torch.stack([extractor.transform(image_tree / name) for name in names])
    for block in (4, 6):
        assert torch.equal(extractor(batch, index=index)[block, 30], store.maps("train", block, 30)[:])
        alone = extractor(batch[7:8], index=index[7:8])[block, 30]
        assert torch.equal(alone, store.maps("train", block, 30)[7:8])
    many = torch.cat([batch, batch, batch])
    again = extractor(many, index=torch.cat([index, index, index]))[6, 30]
    assert torch.equal(again[60:], store.maps("train", 6, 30)[:])


class Classifier(nn.Module):
    """A module of somebody else's, on the maps of an extractor."""

    def __init__(self, extractor: FeatureExtractor):
        super().__init__()
        self.extractor = extractor
        self.last = nn.Linear(extractor.num_features, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.extractor.pooled(images))


@pytest.mark.parametrize("kind", ["frozen", "feedback", "finetuned"])
def test_it_trains_in_another_loop(kind: Any, images: Tensor) -> None:
    extractor = FeatureExtractor(make_backbone(), blocks=(7,), noise_steps=(30,), extractor=kind)
    assert extractor.training == (kind != "frozen")
    model = Classifier(extractor).train()
    before = copy.deepcopy(model.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for epoch in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(5) % 3).backward()
        assert all(parameter.grad is not None for parameter in trained), epoch
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    inside = {name.split(".")[2] for name in changed if name.startswith("extractor.")}
    assert inside == {"frozen": set(), "feedback": {"feedback"}, "finetuned": {"backbone"}}[kind]
    assert "last.weight" in changed
    # what was trained comes back, into another module
    fresh = Classifier(FeatureExtractor(make_backbone(), blocks=(7,), noise_steps=(30,), extractor=kind))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(images), model.eval()(images))


@pytest.mark.parametrize("kind", ["frozen", "feedback", "finetuned"])
def test_copies_pickles_and_data_parallel_give_the_same_maps(kind: Any, images: Tensor) -> None:
    extractor = FeatureExtractor(make_backbone(), blocks=(7,), noise_steps=(30,), extractor=kind).eval()
    expected = extractor(images)[7, 30]
    copied = copy.deepcopy(extractor)
    for other in (copied, pickle.loads(pickle.dumps(extractor)), nn.DataParallel(extractor)):
        assert torch.equal(other(images)[7, 30], expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.allclose(copied(images)[7, 30], expected)
    assert torch.equal(extractor(images)[7, 30], expected)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "U-Net") for kind in ("frozen", "feedback", "finetuned")),
        ("frozen", "DiT"),
        ("frozen", "LDM"),
    ],
)
def test_replicas_of_data_parallel(
    kind: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two GPUs, on the CPU: each replica reads with tensors of its own, and sends gradients back."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[each.clone() for each in tensors] for _ in devices],
    )
    backbone = make_backbone() if family == "U-Net" else every.write(family, tmp_path).load()
    extractor = FeatureExtractor(backbone, blocks=(3,), noise_steps=(30,), extractor=kind).eval()
    images = torch.rand(5, backbone.in_channels, backbone.image_size, backbone.image_size) * 2 - 1
    expected = extractor(images)[3, 30]
    trained = [parameter for parameter in extractor.parameters() if parameter.requires_grad]
    if trained:
        gradients = torch.autograd.grad(expected.square().sum(), trained, allow_unused=True)
    replicas = module.replicate(extractor, ["cpu", "cpu"])
    parts = [replica(part)[3, 30] for replica, part in zip(replicas, images.split(3), strict=True)]
    torch.testing.assert_close(torch.cat(parts), expected)
    if trained:
        back = torch.autograd.grad(sum(part.square().sum() for part in parts), trained, allow_unused=True)
        for one, other in zip(back, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.zero_()
    torch.testing.assert_close(replicas[1](images[3:])[3, 30], parts[1])


def test_torch_compile(images: Tensor) -> None:
    extractor = FeatureExtractor(make_backbone(), blocks=(3,), noise_steps=(30,))
    compiled = torch.compile(extractor, backend="eager")
    assert torch.equal(compiled(images)[3, 30], extractor(images)[3, 30])
    with pytest.raises(DiffLensError, match=r"must lie in \[-1, 1\]"):
        compiled(images * 3)


def test_it_moves_and_says_what_it_is(backbone_folder: Path) -> None:
    extractor = FeatureExtractor(backbone_folder, **PLACES, seed=4)
    assert all(parameter.is_meta for parameter in extractor.to("meta").parameters())
    assert "places=[(4, 30), (6, 30)], seed=4" in repr(extractor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images * 255, r"lie in \[-25.*, 25.*\], and must lie in \[-1, 1\]"),
        (lambda images: images / 0, "must lie in"),
        (lambda images: (images > 0).byte() * 255, "images of uint8: they must be floating-point"),
        (lambda images: images.expand(-1, 3, -1, -1), r"\(5, 3, 16, 16\): test takes \(B, 1, H, W\)"),
        (lambda images: images[0], r"\(1, 16, 16\): test takes"),
        (lambda images: images[..., :15, :15], "image side 15 is not a multiple of 2"),
        (lambda images: images[..., :7], "image side 7 is not a multiple of 2"),
    ],
)
def test_other_images_are_refused_with_what_transform_does(
    backbone: Backbone, images: Tensor, change: Any, message: str
) -> None:
    expected = f"{message}.*`transform` gives such images: EXIF orientation, grey, shorter side to 16 pixels"
    with pytest.raises(DiffLensError, match=expected):
        FeatureExtractor(backbone, **PLACES)(change(images))


def test_an_index_is_one_number_for_each_image(backbone: Backbone, images: Tensor) -> None:
    with pytest.raises(DiffLensError, match=r"index of shape \(2,\) for 5 images"):
        FeatureExtractor(backbone, **PLACES)(images, index=torch.arange(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (99,)}, "no block 99"),
        ({"noise_steps": (5000,)}, "noise step 5000 is outside"),
        ({"draws": 0}, "at least one noise sample"),
        ({"extractor": "warm"}, "no extractor 'warm'; there are frozen, feedback, finetuned"),
        ({"precision": "float8"}, "no precision 'float8'"),
        ({"from_block": 3}, "does not read options of finetuned: leave out from_block"),
        ({"feedback_blocks": (7,)}, "does not read options of feedback: leave out feedback_blocks"),
        ({"extractor": "finetuned", "precision": "bfloat16"}, "keeps float32 weights: leave out precision"),
        ({"image_size": 32}, "test is loaded already: leave out image_size"),
    ],
    ids=str,
)
def test_options_that_cannot_be_right(backbone: Backbone, options: Any, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        FeatureExtractor(backbone, **options)


def test_a_run_directory_is_a_backbone(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, images: Tensor
) -> None:
    run = ProbeConfig(
        out=str(tmp_path / "run"),
        backbone=backbone_folder,
        data=image_tree,
        head="linear",
        blocks=[4],
        noise_steps=3,
        epochs=1,
        device="cpu",
        workers=0,
    )
    probe(run)
    batch = images.expand(-1, 3, -1, -1)
    expected = FeatureExtractor(str(backbone_folder), **PLACES)(batch)[6, 30]
    for named in (run.out, str(run.out), run.out / "model"):
        assert torch.equal(FeatureExtractor(named, **PLACES)(batch)[6, 30], expected)
    untrained = load_backbone(f"random:{run.out}")
    assert untrained.fingerprint() == load_backbone(f"random:{backbone_folder}").fingerprint()
    with pytest.raises(DiffLensError, match="with options of its own: leave out options of the backbone"):
        load_backbone(run.out, image_size=32)
    tuned = replace(run, out=tmp_path / "tuned", extractor="finetuned", batch_size=16)
    probe(tuned)
    with pytest.raises(DiffLensError, match="holds no frozen backbone: training fine-tuned it"):
        load_backbone(tuned.out)


def test_another_precision_leaves_a_shared_backbone_as_it_is(images: Tensor) -> None:
    backbone = load_backbone("fashion")
    exact = FeatureExtractor(backbone)
    index = torch.arange(len(images))
    before = exact(images, index)
    fast = FeatureExtractor(backbone, precision="bfloat16")
    assert (backbone.dtype, fast.backbone.dtype) == (torch.float32, torch.bfloat16)
    after = exact(images, index)
    assert all(torch.equal(after[place], maps) for place, maps in before.items())
    with pytest.raises(DiffLensError, match="was converted to bfloat16: load it again"):
        FeatureExtractor(fast.backbone)


def test_fine_tuning_leaves_the_backbone_of_others_as_it_is() -> None:
    shared = make_backbone()
    frozen = FeatureExtractor(shared, **PLACES)
    tuned = FeatureExtractor(shared, extractor="finetuned", **PLACES)
    fed = FeatureExtractor(shared, extractor="feedback", **PLACES)
    assert frozen.backbone is shared
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert {name.split(".")[1] for name, each in fed.named_parameters() if each.requires_grad} == {"feedback"}
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1)
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    expected = FeatureExtractor(make_backbone(), **PLACES)(images)
    assert all(torch.equal(maps, expected[place]) for place, maps in frozen(images).items())


@pytest.mark.parametrize("numbers", [np.array([4, 6]), torch.tensor([4, 6]), [np.int64(4), 6]])
def test_places_as_numbers_of_numpy_and_torch(backbone: Backbone, numbers: Any) -> None:
    extractor = FeatureExtractor(backbone, numbers, np.int64(30))
    assert extractor.places == [(4, 30), (6, 30)]
    assert {type(number) for place in extractor.places for number in place} == {int}


def test_what_is_no_tensor_is_named(backbone: Backbone) -> None:
    with pytest.raises(DiffLensError, match="images of type ndarray: a batch is one tensor"):
        FeatureExtractor(backbone, **PLACES)(np.zeros((1, 1, 16, 16)))


def test_images_that_begin_at_0_are_doubted(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    note.cache_clear()
    extractor, images = FeatureExtractor(backbone, **PLACES), torch.rand(2, 1, 16, 16)
    for each in (2 * images - 1, torch.zeros(2, 1, 16, 16), torch.zeros(0, 1, 16, 16)):
        extractor(each)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        extractor(images)
    assert capsys.readouterr().err.count("as if they lay in [0, 1]") == 1


@pytest.mark.parametrize("kind", ["frozen", "feedback", "finetuned", "finetuned of latents"])
def test_it_says_where_images_get_no_gradient(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note.cache_clear()
    name, _, latents = kind.partition(" of ")
    backbone = make_backbone() if not latents else every.write("LDM", tmp_path).load()
    extractor = FeatureExtractor(backbone, blocks=(6,), noise_steps=(30,), extractor=name)
    side = backbone.image_size
    images = (torch.rand(2, backbone.in_channels, side, side) * 2 - 1).requires_grad_()
    with torch.no_grad():
        extractor(images)
    assert capsys.readouterr().err == ""
    vectors = extractor.pooled(images)
    if vectors.requires_grad:
        vectors.sum().backward()
    whole = kind == "finetuned"
    assert (images.grad is not None) == (whole or kind == "feedback")  # of the second pass alone
    assert ("the gradient of these images is missing or incomplete" in capsys.readouterr().err) != whole


def test_images_of_integers_are_refused(backbone: Backbone) -> None:
    """Their noise would be rounded to 0, and so would they."""
    pixels, index = torch.full((2, 1, 16, 16), 200, dtype=torch.uint8), torch.arange(2)
    extractor = FeatureExtractor(backbone, **PLACES)
    for read in (
        lambda: extractor.extractor(pixels, index),
        lambda: Probe(extractor, make_head(HeadConfig("difformer"), extractor.shapes(), 3))(pixels),
        lambda: backbone.add_noise(pixels, 30, torch.randn(2, 1, 16, 16)),
    ):
        with pytest.raises(DiffLensError, match=r"images of dtype torch\.uint8"):
            read()


@pytest.mark.parametrize("family", ["LDM", "U-Net"])
@pytest.mark.parametrize("kind", ["frozen", "feedback"])
def test_it_reads_in_half_precision(kind: Any, family: str, tmp_path: Path) -> None:
    backbone = make_backbone() if family == "U-Net" else every.write(family, tmp_path).load()
    extractor = FeatureExtractor(backbone, blocks=(6,), noise_steps=(30,), extractor=kind).eval()
    images = torch.rand(2, backbone.in_channels, backbone.image_size, backbone.image_size) * 2 - 1
    expected = extractor.pooled(images)
    found = extractor.to(torch.bfloat16).pooled(images)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_frequencies_stay_exact_in_half_precision(tmp_path: Path) -> None:
    backbone = load_backbone(write_ncsnpp(tmp_path / "sde"))
    (before,) = (part.weight for part in backbone.modules() if isinstance(part, GaussianFourierProjection))
    exact = before.detach().clone()
    FeatureExtractor(backbone, 2, 1.0).half()
    (after,) = (part.weight for part in backbone.modules() if isinstance(part, GaussianFourierProjection))
    assert torch.equal(after, exact)
    assert backbone.dtype == torch.float16


def test_feedback_layers_lie_where_the_backbone_does() -> None:
    extractor = FeatureExtractor(make_backbone().to("meta"), 6, 30, extractor="feedback")
    assert {parameter.device.type for parameter in extractor.parameters()} == {"meta"}


def test_clean_images_need_no_index(backbone: Backbone) -> None:
    pixels = FeatureExtractor("pixels:1x16")
    assert pixels.extractor.content_index(torch.rand(3, 1, 16, 16)).tolist() == [0, 0, 0]
    assert pixels.to("meta").backbone.device.type == "meta"


def test_random_networks_leave_the_generators_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would seed GPUs too."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    torch.default_generator.manual_seed(3)
    state = torch.get_rng_state()
    for spec in ("random:fashion", "random:timm:resnet18"):
        load_backbone(spec)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["LDM", "U-Net"])
def test_it_is_exported(family: str, tmp_path: Path) -> None:
    backbone = make_backbone() if family == "U-Net" else every.write(family, tmp_path).load()
    extractor = FeatureExtractor(backbone, **PLACES)
    images = torch.rand(2, backbone.in_channels, backbone.image_size, backbone.image_size) * 2 - 1
    exported = torch.export.export(extractor, (images,)).module()
    other = images.flip(0)
    for place, maps in exported(other).items():
        torch.testing.assert_close(maps, extractor(other)[place], atol=1e-5, rtol=1e-5)


def test_a_probe_takes_it(backbone: Backbone) -> None:
    extractor, images = FeatureExtractor(backbone, 6, 30), torch.rand(4, 1, 16, 16) * 2 - 1
    model = Probe(extractor, make_head(HeadConfig("linear"), extractor.shapes(), 3))
    assert model.extractor is extractor.extractor
    torch.testing.assert_close(model(images), model.head(extractor(images)))


@pytest.mark.parametrize("device", ["gpu0", "cuda:99"])
def test_a_device_that_does_not_exist(device: str) -> None:
    with pytest.raises(DiffLensError, match=f"device '?{device}"):
        FeatureExtractor("fashion", device=device)
