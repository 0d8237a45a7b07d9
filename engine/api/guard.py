"""What stands before every route, WebSockets included: who may speak to this server, from which pages, and how much at once.

- Host: on the loopback address only its own names are answered, so that no web page can reach it under a name of its own
  (DNS rebinding). Origin: a browser's page must come from this server, or from an allowed origin.
- Key: as a Bearer token, as the password of HTTP Basic (what a browser asks for), as a Realtime subprotocol
  (openai-insecure-api-key.KEY), or as the cookie that a page gets with its first answer, as its WebSockets can send no header.
  A user with a password of his own (`auth`) gets in by HTTP Basic, and then by that cookie.
- Size: a request's body is read to its end here, within a time and a size, before anything looks at it.
"""
import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from urllib.parse import SplitResult, urlsplit

from engine.api.limits import Limits

COOKIE = "minimind_key"
KEY_PROTOCOL = "openai-insecure-api-key."


def error_body(message: str, code: str, type: str = "invalid_request_error", param: str | None = None) -> dict:
    """An error as OpenAI's protocols write it."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


class Guard:
    """ASGI middleware. hosts: names this server answers to, None for any; origins: pages of other servers that may use it.

    With api_key or auth ("user:password") nobody gets in without one of them.
    """

    def __init__(self, app, limits: Limits, api_key: str | None = None, auth: str | None = None, hosts: frozenset[str] | None = None,
                 origins: frozenset[str] = frozenset()):
        self.app, self.limits, self.hosts, self.origins = app, limits, hosts, origins
        self.key, self.auth = (None if secret is None else secret.encode() for secret in (api_key, auth))
        self.closed = api_key is not None or auth is not None
        secrets = b"\0".join(filter(None, (self.key, self.auth)))
        self.cookie = hmac.new(secrets, b"cookie of the page", hashlib.sha256).hexdigest() if self.closed else None

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal:
            return await refuse(scope, send, *refusal)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(read_body(receive, headers, self.limits.message_bytes), self.limits.body_s)
        except asyncio.TimeoutError:
            return await refuse(scope, send, 408, error_body(f"the request did not arrive within {self.limits.body_s:g} s", "timeout"))
        if body is None:
            return await refuse(scope, send, 413, error_body(f"a request has at most {self.limits.message_bytes} bytes", "too_large"))
        await self.app(scope, replay(body, receive), self._with_cookie(scope, headers, send))

    def _refusal(self, headers: dict[str, str]) -> tuple | None:
        """(status, body, more headers) for whom must not get in."""
        host = headers.get("host", "")
        if self.hosts is not None and parts_of(f"//{host}").hostname not in self.hosts:
            return 421, error_body("this server is not known under that name; see --host", "unknown_host")
        origin = headers.get("origin")
        if origin is not None and parts_of(origin).netloc != host and origin not in self.origins:
            return 403, error_body("pages of other servers must not use this one; see --allow-origin", "wrong_origin")
        if self.closed and not self._may_enter(headers):
            return (401, error_body("a key is needed: Authorization: Bearer KEY, or a user and his password", "invalid_api_key"),
                    [(b"www-authenticate", b"Basic")])
        return None

    def _may_enter(self, headers: dict[str, str]) -> bool:
        kind, _, value = headers.get("authorization", "").partition(" ")
        keys = [value] if kind.lower() == "bearer" else []
        user = None
        if kind.lower() == "basic":
            try:
                user = base64.b64decode(value, validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                return False
            keys.append(user.partition(":")[2])
        protocols = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
        keys += [name.removeprefix(KEY_PROTOCOL) for name in protocols if name.startswith(KEY_PROTOCOL)]
        if self.key is not None and any(hmac.compare_digest(key.strip().encode(), self.key) for key in keys):
            return True
        if self.auth is not None and user is not None and hmac.compare_digest(user.encode(), self.auth):
            return True
        cookies = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        return any(name == COOKIE and hmac.compare_digest(value.encode(), self.cookie.encode()) for name, _, value in cookies)

    def _with_cookie(self, scope, headers, send):
        """`send`, setting the cookie with the first answer to a browser that has given its password."""
        if not self.closed or not headers.get("authorization", "").lower().startswith("basic "):
            return send
        secure = "; Secure" if scope["scheme"] == "https" else ""

        async def with_cookie(message):
            if message["type"] == "http.response.start":
                cookie = f"{COOKIE}={self.cookie}; HttpOnly; SameSite=Strict; Path=/{secure}".encode()
                message = {**message, "headers": [*message.get("headers", []), (b"set-cookie", cookie)]}
            await send(message)
        return with_cookie


def parts_of(url: str) -> SplitResult:
    """A URL's parts; those of '' when it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


async def read_body(receive, headers: dict[str, str], max_bytes: int) -> bytes | None:
    """The whole body; None when it is larger than max_bytes."""
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body"):
            return bytes(body)


def replay(body: bytes, receive):
    """A `receive` that gives the body once more, then whatever comes."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed():
        return pending.pop() if pending else await receive()
    return replayed


async def refuse(scope, send, status: int, body: dict, headers=()) -> None:
    """Answer with an error; a WebSocket's handshake, too, where the server can do that."""
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers]
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": 1008, "reason": body["error"]["code"]})
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": content})
