"""The web app as one ASGI application, and how it is served."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn

from app import media, theme
from app.jobs import TRAINER
from app.operations import COMMAND
from app.pages.datasets import DatasetsPage
from app.pages.home import HomePage
from app.pages.library import LibraryPage
from app.pages.preview import PreviewPage
from app.pages.train import TrainPage
from app.previews import WORKER
from app.security import check_listening, is_loopback, middlewares
from app.workshop import Workshop
from trainer.errors import UserError

MAX_UPLOAD = "4gb"
_UPLOADS_LOOKED_AT_EVERY, _UPLOADS_KEPT = 3600, 86400  # seconds
_log = logging.getLogger(__name__)


def serve(
    host: str,
    port: int,
    data: Path,
    *,
    trainer: Sequence[str] = TRAINER,
    worker: Sequence[str] = WORKER,
    tools: Sequence[str] = COMMAND,
) -> None:
    """Serves the web app until it is interrupted; port 0 takes a free one.

    The password comes from the environment variable ATELIER_PASSWORD, and further names of a proxy
    in front, separated by commas, from ATELIER_HOSTS.

    Raises:
        UserError: if it may not or cannot listen there, or cannot use the data directory.
    """
    password = os.environ.get("ATELIER_PASSWORD") or None
    names = tuple(filter(None, os.environ.get("ATELIER_HOSTS", "").split(",")))
    check_listening(host, password)
    listening = _listen(host, port)
    with listening, Workshop.opened(data, trainer, worker, tools) as workshop:
        web = application(workshop, host, names, password)
        shown = f"[{host}]" if ":" in host else host
        print(f"LoRA Atelier is at http://{shown}:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            web, log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listening])


def application(
    workshop: Workshop,
    host: str = "127.0.0.1",
    names: tuple[str, ...] = (),
    password: str | None = None,
) -> fastapi.FastAPI:
    """The pages and files of a workshop behind the guards of `security`."""
    # Gradio reads these whenever it stores an upload, and before any thought of telemetry.
    os.environ["GRADIO_TEMP_DIR"] = str(workshop.data / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    web = fastapi.FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=middlewares(host, names, password),
    )
    web.include_router(media.routes(workshop))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode is not supported")  # nor wanted
        _mount(web, workshop, host)
    if not is_loopback(host):
        _log.warning("Listening on %s: anyone with the password can use this machine.", host)
    return web


def _mount(web: fastapi.FastAPI, workshop: Workshop, host: str) -> None:
    """Puts the pages at the root. Every setting that Gradio might take from the environment is
    given here."""
    gr.mount_gradio_app(
        web,
        pages(workshop),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme.theme(),
        css_paths=[theme.STYLE],
        head=f"<script>{theme.SCRIPT.read_text()}</script>",
    )


def pages(workshop: Workshop) -> gr.Blocks:
    """All pages, each at its own address."""
    with gr.Blocks(
        title="LoRA Atelier",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_UPLOADS_LOOKED_AT_EVERY, _UPLOADS_KEPT),
    ) as demo:
        HomePage(workshop).draw(demo)
    for name, drawn in (
        ("Datasets", DatasetsPage(workshop)),
        ("Train", TrainPage(workshop)),
        ("Preview", PreviewPage(workshop)),
        ("Library", LibraryPage(workshop)),
    ):
        with demo.route(name, f"/{name.lower()}", show_in_navbar=False):
            drawn.draw(demo)
    demo.queue(api_open=False, max_size=200)
    return demo


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # there it would let two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"Port {port} of {host} cannot be had: {error.strerror}.",
            "Give another --port, or stop the program that has it.",
        ) from None
    return listening
