"""Models packed for other machines, and uploaded to a hub on this one."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from difflens import (
    DiffLensError,
    PretrainConfig,
    ProbeConfig,
    PushConfig,
    TrainedModel,
    load_backbone,
    pretrain,
    probe,
    push,
)
from difflens.studies import load_model
from tests.helpers import families
from tests.helpers.adm import Adm
from tests.helpers.cli import run
from tests.helpers.dit import Dit


class Hub(ThreadingHTTPServer):
    """The part of the hub's API that an upload uses, and the files that it received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.private, self.exists = False, False


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.private = private and not self.server.exists
            answer: object = {"url": f"http://{self.headers['Host']}/me/clothes", "name": "me/clothes"}
        elif self.path == "/api/validate-yaml":  # the head of the card
            assert "content" in json.loads(body)
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": name, **mode} for name in names]}
        else:
            assert "/commit/" in self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/clothes/commit/1", "commitOid": "1"}
        self._answer(answer)

    def do_GET(self) -> None:
        private = bool(self.server.private)
        self._answer({"id": "me/clothes", "sha": "0", "siblings": [], "tags": [], "private": private})

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_for_this_machine_only")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.helpers.images import make_image_tree

    root = tmp_path_factory.mktemp("push")
    make_image_tree(root / "images")
    shutil.copytree(backbone_folder, root / "backbone")
    config = ProbeConfig(
        backbone=str(root / "backbone"), data=str(root / "images"), out=root / "run", head="linear", epochs=1,
        device="cpu", workers=0,
    )  # fmt: skip
    probe(config)
    return root / "run"


def test_a_packed_model_needs_no_other_file(trained: Path, tmp_path: Path) -> None:
    result = push(PushConfig(model=trained, with_backbone=True, out=tmp_path / "packed"))
    assert result.url is None
    assert {"README.md", "config.json", "model.safetensors", "backbone/config.json"} <= {*result.files}
    assert str(trained.parent) not in "".join(
        (tmp_path / "packed" / name).read_text() for name in ("README.md", "config.json")
    )
    moved = shutil.move(tmp_path / "packed", tmp_path / "elsewhere")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    here, there = TrainedModel.load(trained), TrainedModel.load(Path(moved))
    assert str(tmp_path) in there.backbone.spec
    assert torch.equal(here.probabilities(images), there.probabilities(images))


def test_a_model_is_uploaded_with_its_card(
    trained: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("push", trained, "me/clothes", "--with-backbone") == 0
    assert "Uploaded: http://127.0.0.1" in capsys.readouterr().out
    assert hub.files["model.safetensors"] == (trained / "model/model.safetensors").read_bytes()
    assert b"./backbone" in hub.files["README.md"]
    assert str(trained).encode() not in hub.files["README.md"]
    assert json.loads(hub.files["config.json"])["backbone"]["spec"] == "./backbone"


def test_a_failed_upload_leaves_no_folder(
    trained: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command can run again."""
    asked = PushConfig(model=trained, repo="me/clothes", with_backbone=True, out=tmp_path / "packed")
    with monkeypatch.context() as away:
        away.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DiffLensError, match="me/clothes was not uploaded: "):
            push(asked)
    assert not asked.out.exists()
    push(asked)
    assert (asked.out / "README.md").is_file()


def test_a_public_repository_is_not_made_private(trained: Path, hub: Hub) -> None:
    private = PushConfig(model=trained, repo="me/clothes", with_backbone=True, private=True)
    push(private)
    hub.exists, hub.files = True, {}
    with pytest.raises(DiffLensError, match="me/clothes exists and is public"):
        push(private)
    assert not hub.files


def test_what_a_network_needs_is_packed_with_it(trained: Path, tmp_path: Path) -> None:
    """The pipeline of a part, the flags of a checkpoint, and of a run the network alone."""
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    pipeline = families.write_unet(tmp_path / "pipeline" / "unet", sample_size=16).parent
    (pipeline / "scheduler").mkdir()
    (pipeline / "unet" / "scheduler_config.json").rename(pipeline / "scheduler" / "scheduler_config.json")
    (pipeline / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDPMScheduler"]}))
    adm = Adm()
    torch.save(adm.random_state(), tmp_path / "adm.pt")
    (tmp_path / "adm.yaml").write_text("noise_schedule: cosine\nnum_head_channels: 16\n")
    data = str(trained.parent / "images")
    pretrained = PretrainConfig(
        data=data, out=tmp_path / "pretrained", preset="tiny", epochs=1, batch_size=36
    )
    pretrain(replace(pretrained, device="cpu", workers=0))
    for number, spec in enumerate((pipeline / "unet", tmp_path / "adm.pt", pretrained.out)):
        out = tmp_path / f"run-{number}"
        size = 16 if spec.suffix == ".pt" else None
        common = {"data": data, "head": "linear", "epochs": 1, "device": "cpu", "workers": 0}
        probe(ProbeConfig(backbone=str(spec), out=out, image_size=size, **common))
        files = push(PushConfig(model=out, with_backbone=True, out=tmp_path / f"packed-{number}")).files
        needed = {name for name in files if not name.endswith((".png", ".md"))}
        assert needed <= {*filter_repo_objects(files, allow_patterns=[*load_model.FILES])}
        assert not any("last.pt" in name or name == "backbone/config.yaml" for name in files)
        expected = TrainedModel.load(out).probabilities(images)
        spec.rename(spec.with_name(f"moved-{number}"))
        assert torch.equal(TrainedModel.load(tmp_path / f"packed-{number}").probabilities(images), expected)
    again = ProbeConfig(backbone=str(trained), out=tmp_path / "again", **common)
    probe(again)
    with pytest.raises(DiffLensError, match="which reads another backbone: train on that one to pack it"):
        push(PushConfig(model=again.out, with_backbone=True, out=tmp_path / "packed"))


@pytest.mark.parametrize("vae", ["vae", "./vae"])
def test_a_relative_autoencoder_is_found_from_anywhere_and_packed(
    vae: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    families.write_autoencoder(Path("vae"))
    torch.save(Dit().random_state(), "net.pt")
    latents = {"family": "sit", "num_head_channels": 8, "autoencoder": vae}
    common = {"data": str(trained.parent / "images"), "head": "linear", "epochs": 1, "device": "cpu"}
    out = tmp_path / "run"
    probe(ProbeConfig(backbone="net.pt", out=out, workers=0, **latents, **common))
    monkeypatch.chdir(tmp_path.parent)
    model = TrainedModel.load(out)
    side = model.probe.extractor.backbone.image_size
    images = torch.rand(1, 3, side, side) * 2 - 1
    push(PushConfig(model=out, with_backbone=True, out=tmp_path / "packed"))
    card = (tmp_path / "packed" / "README.md").read_text()
    assert str(tmp_path) not in card
    (tmp_path / "vae").rename(tmp_path / "moved")
    packed = TrainedModel.load(tmp_path / "packed")
    assert torch.equal(packed.probabilities(images), model.probabilities(images))
    read = load_backbone(tmp_path / "packed")
    assert read.fingerprint() == packed.probe.extractor.backbone.fingerprint()
    with pytest.raises(DiffLensError, match=f"Its autoencoder was {tmp_path / 'vae'}, as .*config.json says"):
        TrainedModel.load(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the repository"),
        ({"repo": "clothes"}, "it must be OWNER/NAME"),
        ({"out": "packed"}, "lies on this machine, .*: add --with-backbone"),
    ],
)
def test_what_cannot_be_pushed(options: dict[str, str], message: str, trained: Path, tmp_path: Path) -> None:
    given = options | ({"out": tmp_path / "packed"} if "out" in options else {})
    with pytest.raises(DiffLensError, match=message):
        push(PushConfig(model=trained, **given))  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]
