import pytest

from difflens.data.load import load_data, load_unlabelled
from difflens.errors import DiffLensError


@pytest.mark.parametrize("load", [load_data, load_unlabelled])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fasion", "did you mean fashion"),
        ("torchvison:CIFAR10", "did you mean torchvision:CIFAR10"),
        ("kaggle:cats", "known are fashion, fashion-full, idx:FOLDER"),
        ("/no/such/folder", "'/no/such/folder' is neither a known data set nor a folder"),
        ("folder:/no/such/folder", "no such folder: /no/such/folder"),
        ("hf:", "names no data set"),
        ("", "known are"),
    ],
)
def test_a_wrong_spec_is_explained(load: object, spec: str, message: str) -> None:
    assert callable(load)
    with pytest.raises(DiffLensError) as caught:
        load(spec)
    assert message in str(caught.value)
