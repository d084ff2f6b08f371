"""Correspondence on features whose matches are known."""

import pytest
import torch
import torch.nn.functional as F

from difflens.metrics.correspondence import correct, locate, sample, similarity_maps


def features(channels: int = 24, side: int = 8) -> torch.Tensor:
    return torch.randn(channels, side, side, generator=torch.Generator().manual_seed(3))


def test_a_sample_at_a_cells_centre_is_its_vector_and_between_two_their_mean() -> None:
    maps = features()
    points = torch.tensor([[2.5 / 8, 6.5 / 8], [3 / 8, 6.5 / 8], [0.0, 0.0]])
    centre, between, corner = sample(maps, points)
    torch.testing.assert_close(centre, maps[:, 6, 2])
    torch.testing.assert_close(between, (maps[:, 6, 2] + maps[:, 6, 3]) / 2)
    torch.testing.assert_close(corner, maps[:, 0, 0])


def test_similarities_are_cosines_of_interpolated_features(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, queries = features(), torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    large = F.interpolate(maps[None], (20, 20), mode="bilinear", align_corners=False)[0]
    expected = F.cosine_similarity(queries[:, :, None, None], large[None], dim=1)
    torch.testing.assert_close(similarity_maps(queries, maps, 20), expected)
    monkeypatch.setattr("difflens.metrics.correspondence._CHUNK", 1000)  # two rows at a time
    torch.testing.assert_close(similarity_maps(queries, maps, 20), expected)


def test_points_are_found_in_a_shifted_map() -> None:
    maps = features()
    shifted = maps.roll((2, 1), dims=(1, 2))  # down and to the right
    points = torch.tensor([[1.5 / 8, 2.5 / 8], [4.5 / 8, 0.5 / 8]])
    found, scores = locate(similarity_maps(sample(maps, points), shifted, 8))
    torch.testing.assert_close(found, points + torch.tensor([1 / 8, 2 / 8]))
    torch.testing.assert_close(scores, torch.ones(2))


def test_soft_argmax_lies_between_cells_and_ignores_what_is_far() -> None:
    similarity = torch.full((1, 8, 8), -1.0)
    similarity[0, 3, 2] = similarity[0, 3, 3] = 0.9
    similarity[0, 7, 7] = similarity[0, 3, 5] = 0.89  # the second is one cell outside the square
    soft, scores = locate(similarity, "soft-argmax", temperature=0.01, radius=2 / 8)
    torch.testing.assert_close(soft, torch.tensor([[3 / 8, 3.5 / 8]]))
    torch.testing.assert_close(scores, torch.tensor([0.9]))
    wide, _ = locate(similarity, "soft-argmax", temperature=0.01, radius=1.0)
    assert float(wide[0, 0]) > 3.5 / 8
    hard, _ = locate(similarity)
    torch.testing.assert_close(hard, torch.tensor([[2.5 / 8, 3.5 / 8]]))


def test_a_point_is_correct_within_a_share_of_a_length() -> None:
    true = torch.zeros(3, 2)
    found = torch.tensor([[3.0, 4.0], [0.0, 5.1], [-5.0, 0.0]])
    assert correct(found, true, 50, 0.1).tolist() == [True, False, True]
