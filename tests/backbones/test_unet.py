"""The walk: exact for any U-Net, early, with feedback; and the description of the blocks."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError
from difflens.processes.schedulers import process_of
from tests.helpers.networks import make_backbone


def finish(backbone: UNetBackbone, last: Tensor) -> Tensor:
    """Return the output of the network's own last layers on the map of the last block."""
    unet = backbone.unet
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(last)))


@st.composite
def networks(draw: st.DrawFn) -> UNetBackbone:
    levels = draw(st.integers(1, 4))
    attention = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    resampling = draw(st.sampled_from(["conv", "resnet", "resnet-blocks"]))
    plain = ("DownBlock2D", "UpBlock2D")
    if resampling == "resnet-blocks":
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    channels = draw(st.lists(st.sampled_from([4, 8, 12]), min_size=levels, max_size=levels))
    return make_backbone(
        block_out_channels=tuple(channels),
        layers_per_block=draw(st.integers(1, 3)),
        down_block_types=tuple("AttnDownBlock2D" if a else plain[0] for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else plain[1] for a in reversed(attention)),
        downsample_type="conv" if resampling == "conv" else "resnet",
        upsample_type="conv" if resampling == "conv" else "resnet",
        mid_block_type=draw(st.sampled_from(["UNetMidBlock2D", None])),
        add_attention=draw(st.booleans()),
        resnet_time_scale_shift=draw(st.sampled_from(["default", "scale_shift"])),
        center_input_sample=draw(st.booleans()),
        time_embedding_type=draw(st.sampled_from(["positional", "learned"])),
        num_train_timesteps=1000,
    )


@given(backbone=networks(), t=st.integers(0, 999))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_walk_to_the_end_is_the_networks_forward(backbone: UNetBackbone, t: int) -> None:
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(t))
    with torch.no_grad():
        last = len(backbone.blocks)
        walked = finish(backbone, backbone.features(x, t, [last])[last])
        torch.testing.assert_close(walked, backbone.denoise(x, t), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(walked, backbone.unet(x, t).sample, atol=1e-5, rtol=1e-4)


@given(backbone=networks())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_blocks_describe_their_maps_and_early_exit_changes_nothing(backbone: UNetBackbone) -> None:
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        everything = backbone.features(x, 30, range(1, len(backbone.blocks) + 1))
        for block in backbone.blocks:
            assert everything[block.index].shape == (
                1,
                block.channels,
                16 // block.stride,
                16 // block.stride,
            )
            assert torch.equal(backbone.features(x, 30, [block.index])[block.index], everything[block.index])
            if block.mirror is not None:
                other = backbone.block(block.mirror)
                assert other.mirror == block.index
                assert {block.role, other.role} == {"encoder", "decoder"}
            else:
                assert block.role == "middle"


def test_ncsnpp_networks_with_an_image_path() -> None:
    backbone = make_backbone(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=2,
        norm_num_groups=None,
        attn_norm_num_groups=4,
        time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )
    x = torch.randn(2, 3, 16, 16)
    seen = []
    backbone.unet.conv_norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.denoise(x, 30)
    last = len(backbone.blocks)
    maps = backbone.features(x, 30, range(1, last + 1))
    torch.testing.assert_close(maps[last], seen[0])
    for block in backbone.blocks:
        assert maps[block.index].shape[1:] == (block.channels, 16 // block.stride, 16 // block.stride)


def test_early_exit_runs_nothing_beyond_the_last_block() -> None:
    backbone = make_backbone()
    ran = []
    for block in backbone.blocks:
        backbone.modules_of(block.index)[-1].register_forward_hook(
            lambda *_, index=block.index: ran.append(index)
        )
    backbone.features(torch.randn(1, 1, 16, 16), 10, [5, 2])
    assert ran == [1, 2, 3, 4, 5]


def test_one_step_each_equals_separate_calls() -> None:
    backbone = make_backbone()
    x, steps = torch.randn(3, 1, 16, 16), torch.tensor([5, 500, 999])
    together = backbone.features(x, steps, [7])[7]
    for i, t in enumerate(steps.tolist()):
        torch.testing.assert_close(together[i : i + 1], backbone.features(x[i : i + 1], t, [7])[7])


def test_feedback_enters_the_block_and_its_skip() -> None:
    backbone = make_backbone()
    x, sent = torch.randn(2, 1, 16, 16), torch.randn(2, 8, 8, 8)
    plain = backbone.features(x, 10, range(1, 10))
    fed = backbone.features(x, 10, range(1, 10), feedback={3: sent})
    assert torch.equal(fed[2], plain[2])
    torch.testing.assert_close(fed[3], plain[3] + sent)
    mirror = backbone.block(3).mirror
    # the mirror's skip input is the sum: cut the path through the deeper blocks to see it
    unit = backbone._units[mirror - 1]
    seen = []
    hook = unit.modules[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -8:]))
    backbone.features(x, 10, [mirror], feedback={3: sent})
    hook.remove()
    torch.testing.assert_close(seen[0], plain[3] + sent)


@pytest.mark.parametrize("collect", [(6,), (7,), (6, 8), (6, 7, 8, 9), (9,)])
def test_two_passes_equal_two_calls(collect: Sequence[int]) -> None:
    """Sharing the blocks before the first feedback leaves the maps exact."""
    backbone = make_backbone()
    x = torch.randn(2, 1, 16, 16)

    def respond(maps: dict[int, Tensor]) -> dict[int, Tensor]:
        assert set(maps) >= set(collect)
        sent = {}
        for block in collect:
            mirror = backbone.block(backbone.block(block).mirror)
            resized = torch.nn.functional.interpolate(maps[block].mean(1, keepdim=True), 16 // mirror.stride)
            sent[mirror.index] = resized.expand(-1, mirror.channels, -1, -1)
        return sent

    blocks = (1, 4, 7)
    once = backbone.features_with_feedback(x, 50, blocks, collect, respond)
    first = backbone.features(x, 50, collect)
    twice = backbone.features(x, 50, blocks, respond(first))
    assert sorted(once) == sorted(blocks)
    for block in blocks:
        torch.testing.assert_close(once[block], twice[block])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, x: b.features(x, 0, [12]), r"no block 12: .*9 blocks: encoder 1-4, middle 5, decoder 6-9"),
        (lambda b, x: b.features(x, 0, [0]), "no block 0"),
        (lambda b, x: b.features(x, 0, []), "blocks is empty"),
        (lambda b, x: b.features(x, 0, [5], {7: x}), "encoder blocks only, not block 7"),
        (lambda b, x: b.check_noise_steps([3, 1000]), "noise step 1000 is outside .* 0 to 999"),
        (lambda b, x: b.check_noise_steps([-1]), "noise step -1"),
        (lambda b, x: b.check_size(17), "not a multiple of 2"),
    ],
)
def test_what_does_not_exist_is_named(call: object, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        call(make_backbone(), torch.zeros(1, 1, 16, 16))


def test_a_conditional_network_needs_its_condition() -> None:
    with pytest.raises(DiffLensError, match="no condition is given"):
        make_backbone(num_class_embeds=10)


def test_frozen_and_in_evaluation_mode_whatever_happens_around_it() -> None:
    backbone = make_backbone(dropout=0.5)
    outer = torch.nn.ModuleList([backbone]).train()
    assert outer.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_fingerprint_changes_with_weights_schedule_and_architecture() -> None:
    backbone = make_backbone()
    same = make_backbone()
    assert backbone.fingerprint() == same.fingerprint()
    with torch.no_grad():
        same.unet.conv_in.bias[0] += 1e-3
    cosine = UNetBackbone(backbone.unet, process_of({"beta_schedule": "squaredcos_cap_v2"}))
    centred = make_backbone(center_input_sample=True)
    assert len({b.fingerprint() for b in (backbone, same, cosine, centred)}) == 4
