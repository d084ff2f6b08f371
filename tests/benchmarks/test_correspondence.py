"""The benchmark of correspondence knows where each point of a view lies in its photograph."""

import torch
from benchmarks.correspondence import Reader, homography, mapped, view_of


def test_a_homography_maps_corners_and_keeps_lines() -> None:
    corners = torch.tensor([[0.1, 0.2], [0.9, 0.0], [1.0, 0.8], [0.2, 1.0]])
    matrix = homography(corners)
    unit = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(mapped(matrix, unit), corners)
    first, middle, last = mapped(matrix, torch.tensor([[0.0, 0.0], [0.4, 0.3], [0.8, 0.6]]))
    (x, y), (u, v) = (middle - first).tolist(), (last - first).tolist()
    assert abs(x * v - y * u) < 1e-6


def test_a_view_shows_what_lies_at_the_mapped_positions() -> None:
    """Red grows to the right and green downwards; the light changes both by one increasing function."""
    side = 64
    columns = torch.arange(side).expand(side, side)
    photograph = torch.stack([2 * columns, 2 * columns.T, torch.full((side, side), 128)]).to(torch.uint8)
    view, matrix = view_of(photograph, torch.Generator().manual_seed(1))
    centres = (torch.arange(side) + 0.5) / side
    row = mapped(matrix, torch.stack([centres, torch.full((side,), centres[20])], dim=1))
    assert 0 <= float(row.min()) <= float(row.max()) <= 1
    for channel, axis in ((0, 0), (1, 1)):
        seen, true = view[channel, 20].double(), row[:, axis].double()
        assert float(torch.corrcoef(torch.stack([seen, true]))[0, 1].abs()) > 0.97


def test_pixels_are_read_as_patches() -> None:
    reader = Reader("pixels:1", 16, 0, (), ())
    photograph = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    ((place, maps),) = reader.maps(photograph.to(torch.uint8), 0).items()
    assert place == (0, 0)
    assert maps.shape == (49, 16, 16)
