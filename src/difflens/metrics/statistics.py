"""Confidence intervals."""

Z95 = 1.959964
"""The two-sided 95 % quantile of the standard normal distribution."""


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval, in [0, 1], of the share `hits` / `total` (Wilson, 1927)."""
    share = hits / total
    centre = share + Z95**2 / (2 * total)
    half = Z95 * (share * (1 - share) / total + Z95**2 / (4 * total**2)) ** 0.5
    scale = 1 + Z95**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
