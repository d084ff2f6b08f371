"""Average precision against scikit-learn's, and its interval."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss

from difflens import DiffLensError
from difflens.metrics.multi_label import MultiLabelEvaluation, average_precision

CLASSES = ("a", "b", "c")


def evaluation(labels: list[list[int]], probabilities: list[list[float]]) -> MultiLabelEvaluation:
    rows = 2 * torch.arange(len(labels))
    return MultiLabelEvaluation(rows, torch.tensor(labels).bool(), torch.tensor(probabilities), CLASSES)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0])), min_size=1, max_size=30)
)
def test_it_is_that_of_scikit_learn_also_with_equal_scores(images: list[tuple[bool, float]]) -> None:
    labels, scores = (torch.tensor(column)[:, None] for column in zip(*images, strict=True))
    (found,) = average_precision(scores, labels)[0].tolist()
    if labels.any():
        assert found == pytest.approx(average_precision_score(labels[:, 0], scores[:, 0]), abs=1e-6)
    else:
        assert found != found  # NaN


def test_images_that_count_several_times() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(40, 3, generator=generator), torch.rand(40, 3, generator=generator) < 0.4
    times = torch.randint(0, 4, (40, 5), generator=generator)
    found = average_precision(scores, labels, times.float())
    for row, count in enumerate(times.T):
        drawn = torch.arange(40).repeat_interleave(count)
        expected = average_precision_score(labels[drawn], scores[drawn], average=None)
        assert found[row].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_class_that_no_image_has_is_left_out_of_the_mean() -> None:
    result = evaluation(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0.9, 0.8, 0.1], [0.5, 0.6, 0.2], [0.6, 0.7, 0.3]]
    )
    a, b = 1 / 2 + 1 / 3, 1 / 4 + 1 / 3
    assert result.per_class == {"a": pytest.approx(a), "b": pytest.approx(b), "c": None}
    assert result.map == pytest.approx((a + b) / 2)
    assert result.positives == {"a": 2, "b": 2, "c": 0}
    assert set(result.per_class_intervals) == {"a", "b"}
    with pytest.raises(DiffLensError, match="no test image that could be read has a label"):
        _ = evaluation([[0, 0, 0]], [[0.9, 0.8, 0.1]]).map


def test_calibration_is_over_all_pairs_of_image_and_class() -> None:
    labels = [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    result = evaluation(labels, [[0.9, 0.8, 0.1], [0.5, 0.6, 0.2], [0.6, 0.7, 0.3]])
    true, said = result.labels.numpy().ravel(), result.probabilities.numpy().ravel()
    assert result.nll == pytest.approx(log_loss(true, said), abs=1e-6)
    # each probability is alone in its bin of a fifteenth, but for the pair (1, 0) of 0.6
    gaps = [0.1, 0.8, 0.1, 0.5, 0.2, 0.3, 0.3, (0.6 + 0.6 - 1)]
    assert result.ece == pytest.approx(sum(gaps) / 9, abs=1e-6)
    assert {"ece": result.ece, "nll": result.nll}.items() <= result.metrics().items()


def test_the_likelihood_of_a_sure_mistake_is_finite() -> None:
    assert evaluation([[1, 0, 0]], [[0.0, 0.0, 0.0]]).nll == pytest.approx(100 / 3)


def test_labels_as_numbers() -> None:
    labels, logits = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]), torch.randn(4, 2)
    expected = MultiLabelEvaluation.of(torch.arange(4), labels.bool(), logits, ("a", "b")).map
    for each in (labels, labels.float()):
        assert MultiLabelEvaluation.of(torch.arange(4), each, logits, ("a", "b")).map == expected
    with pytest.raises(DiffLensError, match="must be 0 or 1"):
        MultiLabelEvaluation.of(torch.arange(4), 2 * labels, logits, ("a", "b"))


def test_confident_predictions_are_ranked() -> None:
    logits = torch.tensor([[30.0], [18.0], [20.0], [-3.0]])
    labels = torch.tensor([[True], [False], [False], [False]])
    assert MultiLabelEvaluation.of(torch.arange(4), labels, logits, ("a",)).map == 1.0


def test_the_interval_covers_the_mean_of_other_samples() -> None:
    """The interval of 95 % holds the value on a large sample for most small samples."""

    def sample(count: int, seed: int) -> MultiLabelEvaluation:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.rand(count, 3, generator=generator) < 0.3
        scores = (torch.randn(count, 3, generator=generator) + 1.5 * labels).sigmoid()
        return MultiLabelEvaluation(torch.arange(count), labels, scores, CLASSES)

    true = sample(20_000, 99).map
    intervals = [sample(200, seed).map_interval for seed in range(40)]
    assert 33 <= sum(low <= true <= high for low, high in intervals) <= 40
    assert all(0.02 < high - low < 0.2 for low, high in intervals)
    assert sample(200, 0).map_interval == intervals[0]


def test_images_that_are_ranked_wrongly() -> None:
    result = evaluation(
        [[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]],
        [[0.9, 0.5, 0.1], [0.5, 0.9, 0.2], [0.4, 0.1, 0.8], [0.6, 0.2, 0.7]],
    )
    assert result.misranked() == [("a", False, [6, 2]), ("a", True, [4])]
