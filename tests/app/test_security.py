"""Who may speak with the app. The guards stand in front of a page that says hello."""

from __future__ import annotations

import base64

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import security
from app.security import check_listening, is_loopback, middlewares
from trainer.errors import UserError

HERE = "http://127.0.0.1:7860"


def client(
    host: str = "127.0.0.1", names: tuple[str, ...] = (), password: str | None = None
) -> TestClient:
    def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    routes = [Route("/{path:path}", hello, methods=["GET", "POST"])]
    web = Starlette(routes=routes, middleware=middlewares(host, names, password))
    return TestClient(web, base_url=HERE)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "127.0.0.9"])
def test_loopback_names_are_answered(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "192.168.1.7:7860", "", "127.0.0.1.evil.example"]
)
def test_a_name_that_may_be_rebound_is_refused(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 400


def test_beyond_loopback_addresses_are_known_but_not_names() -> None:
    open_to_all = client("0.0.0.0", ("atelier.example",), "secret")
    login = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    for host, status in (
        ("192.168.1.7:7860", 200),
        ("atelier.example", 200),
        ("evil.example", 400),
    ):
        assert open_to_all.get("/", headers={"Host": host, **login}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": HERE}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_our_own_pages_may_post(headers: dict[str, str], status: int) -> None:
    assert client().post("/gradio_api/upload", headers=headers).status_code == status


def test_a_link_from_another_site_may_be_followed_but_its_scripts_may_not_read() -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client().get("/", headers=followed).status_code == 200
    assert client().get("/", headers={"Origin": "https://evil.example"}).status_code == 403


def test_pages_may_load_nothing_from_elsewhere_and_files_run_nothing() -> None:
    page = client().get("/train").headers
    assert "default-src 'self'" in page["content-security-policy"]
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    for path in ("/gradio_api/file=/x.html", "/media/runs/a/samples/step-1/00.png"):
        assert client().get(path).headers["content-security-policy"] == (
            "default-src 'none'; sandbox"
        )
    assert page["x-content-type-options"] == "nosniff"
    assert page["x-frame-options"] == "DENY"


def test_a_password_guards_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "_SECONDS_PER_WRONG_PASSWORD", 0)
    guarded = client(password="correct horse")
    answer = guarded.get("/theme.css")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert guarded.get("/", auth=("anyone", "correct horse")).text == "hello"
    for wrong in ("", "correct hors", "correct horse "):
        assert guarded.get("/", auth=("anyone", wrong)).status_code == 401
    for header in ("Basic", "Basic !!!", "Bearer correct horse"):
        assert guarded.get("/", headers={"Authorization": header}).status_code == 401


def test_listening_to_the_network_needs_a_password() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert is_loopback(host)
        check_listening(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.7", "atelier.example"):
        assert not is_loopback(host)
        check_listening(host, "secret")
        with pytest.raises(UserError, match="ATELIER_PASSWORD"):
            check_listening(host, None)
