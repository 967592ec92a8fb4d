"""The application as a whole, asked over HTTP in process: pages, files, guards, refusals."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.server import application, serve
from app.workshop import Workshop
from tests.app.adapters import write_adapter
from tests.app.fakes import TRAINER, WORKER, add_dataset, new_run, until
from trainer.errors import UserError
from trainer.run import State


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    data = tmp_path_factory.mktemp("served") / "data"
    with Workshop.opened(data, TRAINER, WORKER) as workshop:
        add_dataset(data / "datasets", "pips")
        write_adapter(data / "adapters" / "mira.safetensors")
        id = new_run(data / "runs", steps=10)
        workshop.jobs.submit(id)
        until(lambda: workshop.jobs.state(id) is State.FINISHED)
        yield workshop


@pytest.fixture(scope="module")
def client(opened: Workshop) -> TestClient:
    return TestClient(application(opened), base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("path", ["/", "/datasets", "/train", "/preview", "/library"])
def test_pages_answer_and_name_no_other_host_to_load_from(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis" not in answer.text
    assert "cdn" not in answer.text.lower()


def test_images_and_downloads_are_served(client: TestClient, opened: Workshop) -> None:
    id = opened.jobs.ids()[0]
    for address, kind in (
        ("/media/datasets/pips/0001.png?side=256", "image/webp"),
        ("/media/samples/character/01.png", "image/png"),
        (f"/media/runs/{id}/samples/step-000010/00.png", "image/png"),
        ("/media/adapters/file%3Amira.safetensors", "application/octet-stream"),
        (f"/media/adapters/run%3A{id}", "application/octet-stream"),
        (f"/media/adapters/run%3A{id}%4010", "application/octet-stream"),
    ):
        answer = client.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), address
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert 'filename="mira.safetensors"' in client.get(
        "/media/adapters/file%3Amira.safetensors"
    ).headers["content-disposition"]  # fmt: skip


@pytest.mark.parametrize(
    "address",
    [
        "/media/datasets/pips/..%2F..%2Fcatalogue.sqlite",
        "/media/datasets/..%2Fruns/x.png",
        "/media/datasets/pips/0001.txt",
        "/media/datasets/pips/0001.png?side=9999",
        "/media/samples/character/..%2F..%2FREADME.md",
        "/media/samples/character/01.txt",
        "/media/runs/..%2Fdatasets/samples/step-1/00.png",
        "/media/runs/absent/samples/step-000010/00.png",
        "/media/previews/..%2F..%2F..%2Fetc/00.png",
        "/media/previews/0123456789abcdef0123456789abcdef/00.png",
        "/media/adapters/..%2Fcatalogue.sqlite",
        "/media/adapters/file%3A..%2Fcatalogue.sqlite",
        "/gradio_api/file=/etc/passwd",
        "/docs",
        "/redoc",
    ],
)
def test_nothing_else_is_served(client: TestClient, address: str) -> None:
    assert client.get(address).status_code in (403, 404, 422)


def test_the_data_directory_itself_is_not_served(client: TestClient, opened: Workshop) -> None:
    for name in ("catalogue.sqlite", "datasets/pips/0001.png", "adapters/mira.safetensors"):
        assert client.get(f"/gradio_api/file={opened.data / name}").status_code in (403, 404)


def test_other_sites_may_not_upload(client: TestClient) -> None:
    files = {"files": ("x.png", b"content")}
    foreign = {"Origin": "https://evil.example"}
    assert client.post("/gradio_api/upload", files=files, headers=foreign).status_code == 403
    assert client.post("/gradio_api/upload", files=files).status_code == 200


def test_importing_the_app_imports_no_torch() -> None:
    script = (
        "import app.server, sys; "
        "sys.exit(str({'torch', 'diffusers', 'transformers'} & set(sys.modules)) "
        "if {'torch', 'diffusers', 'transformers'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_two_servers_do_not_share_a_data_directory(opened: Workshop) -> None:
    with (
        pytest.raises(UserError, match="Another `atelier serve`"),
        Workshop.opened(opened.data, TRAINER, WORKER),
    ):
        pytest.fail("the second one opened it")


def test_mistakes_in_serving_are_told_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ATELIER_PASSWORD"):
        serve("0.0.0.0", 0, tmp_path / "data")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be had"):
            serve("127.0.0.1", taken.getsockname()[1], tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        serve("127.0.0.1", 0, tmp_path / "file" / "data")
    assert not (tmp_path / "data").exists()
