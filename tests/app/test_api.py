"""The pages' named endpoints, called as a program would: by gradio_client over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.app.adapters import write_adapter
from tests.app.fakes import add_dataset
from tests.browser.serving import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(tmp_path_factory.mktemp("api") / "data")
    add_dataset(served.data / "datasets", "pips")
    write_adapter(served.data / "adapters" / "mira.safetensors")
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.address, verbose=False)


def test_a_dataset_is_made_filled_and_captioned(
    client: Client, server: Server, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "photo.png")
    client.predict("by program", api_name="/create_dataset")
    client.predict([handle_file(tmp_path / "photo.png")], "by program", api_name="/import")
    client.predict("by program", "0001.png", "a dark square", api_name="/save_caption")
    folder = server.data / "datasets" / "by program"
    assert (folder / "0001.txt").read_text() == "a dark square\n"


def test_a_mistake_is_told_in_our_words(client: Client) -> None:
    with pytest.raises(AppError, match="no name for a dataset"):
        client.predict("../x", api_name="/create_dataset")
    with pytest.raises(AppError, match="has no image"):
        client.predict("pips", "../../catalogue.sqlite", "x", api_name="/save_caption")


def test_only_what_is_meant_for_programs_is_listed(client: Client) -> None:
    listed = client.view_api(return_format="dict", print_info=False)
    assert isinstance(listed, dict)
    assert set(listed["named_endpoints"]) == {
        "/create_dataset", "/import", "/save_caption", "/draw", "/compare", "/strip",
        "/import_adapter",
    }  # fmt: skip
    assert listed["unnamed_endpoints"] == {}
