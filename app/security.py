"""Who may speak with the web app: the host check, the origin check, the password, the headers.

A page in the same browser can send requests to a server on this machine, and a name that an
attacker owns can be made to point here (DNS rebinding). So the app answers only to names it knows,
takes nothing from foreign origins, and asks for a password once it listens beyond this machine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import UserError

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SECONDS_PER_WRONG_PASSWORD = 1.0

# Gradio builds its templates with `new Function` and inlines its configuration and styles.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' blob: data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox"
_FILE_PATHS = ("/gradio_api/file=", "/gradio_api/file/", "/media/")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listening(host: str, password: str | None) -> None:
    """Refuses to listen beyond this machine without a password.

    Raises:
        UserError: saying which environment variable sets one.
    """
    if not is_loopback(host) and not password:
        raise UserError(
            f"Listening on {host} would open the app, and its disk, to the network.",
            "Set a password in the environment variable ATELIER_PASSWORD, or leave out --host.",
        )


def middlewares(host: str, names: tuple[str, ...], password: str | None) -> list[Middleware]:
    """The guards of a server that listens on `host`, outermost first.

    `names` are further host names under which it is reached, such as that of a proxy.
    """
    guards = [
        Middleware(ResponseHeaders),
        Middleware(TrustedHost, names=names, any_address=not is_loopback(host)),
        Middleware(SameOrigin),
    ]
    if password:
        guards.append(Middleware(Password, password=password))
    return guards


class ResponseHeaders:
    """Adds the headers that keep a browser from guessing types, framing and foreign requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        policy = _FILE_POLICY if scope["path"].startswith(_FILE_PATHS) else _PAGE_POLICY

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Content-Security-Policy"] = policy
            await send(message)

        await self.app(scope, receive, send_with_headers)


class TrustedHost:
    """Answers only under names that cannot be made to point here by somebody else's DNS.

    Loopback names and this machine's own name are known; with `any_address`, so is every literal
    IP address, which no DNS entry can stand for.
    """

    def __init__(
        self, app: ASGIApp, names: tuple[str, ...] = (), any_address: bool = False
    ) -> None:
        self.app = app
        self.any_address = any_address
        own = (socket.gethostname(),) if any_address else ()
        self.names = frozenset(name.lower() for name in ("localhost", *own, *names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._known(Headers(scope=scope).get("host", "")):
            await PlainTextResponse("This host name is not known here.", 400)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address or address.is_loopback


class SameOrigin:
    """Refuses requests that a page of another origin makes, and any web socket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and not _same_origin(scope["method"], Headers(scope=scope)):
            await PlainTextResponse("Another site may not use this app.", 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _same_origin(method: str, headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    # A browser names the site a request comes from; programs such as curl do not.
    site = headers.get("sec-fetch-site", "none")
    return method in _SAFE_METHODS or site in ("same-origin", "none")


class Password:
    """Asks for a password by HTTP Basic; any user name will do. Wrong ones are answered slowly,
    one after another, so that guessing is hopeless."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        self.app = app
        self.password = password.encode()
        self.wrong = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = _basic_password(Headers(scope=scope).get("authorization", ""))
        if given is not None and hmac.compare_digest(given, self.password):
            await self.app(scope, receive, send)
            return
        if given is not None:
            async with self.wrong:
                await asyncio.sleep(_SECONDS_PER_WRONG_PASSWORD)
        response = PlainTextResponse(
            "A password is needed.",
            401,
            {"WWW-Authenticate": 'Basic realm="LoRA Atelier", charset="UTF-8"'},
        )
        await response(scope, receive, send)


def _basic_password(header: str) -> bytes | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, _, password = base64.b64decode(encoded, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return password
