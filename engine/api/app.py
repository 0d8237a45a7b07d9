"""The server's application: all routes around one Service, behind the Guard. `create_app` starts nothing by itself.

    GET  /healthz /metrics /v1/models          POST /v1/chat/completions /v1/audio/speech
    GET, POST, DELETE /v1/voices               GET  /phone, a page that calls the model
    WS   /v1/realtime                          GET  /, the web page, where it is wanted
"""
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from engine.api import calls, completions, voices
from engine.api.guard import Guard, error_body
from engine.api.service import Service
from engine.realtime_events import ProtocolError

STATIC = Path(__file__).parent / "static"
# of a ProtocolError's code; others are 400
STATUS = {"server_busy": 429, "reply_failed": 500, "server_error": 500, "audio_not_found": 404, "voice_not_found": 404}
PAGE_HEADERS = {"content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
                                           "connect-src 'self' ws: wss:; frame-ancestors 'self'",
                "cache-control": "no-cache", "x-content-type-options": "nosniff"}


def create_app(service: Service, with_page: bool = False, **guard) -> FastAPI:
    """The ASGI application. with_page: also the web page, whose library takes seconds to import. guard: the Guard's arguments."""

    @asynccontextmanager
    async def lifespan(app):
        await service.start()
        yield
        service.close()

    app = FastAPI(title="MiniMind-O", description="An omni model over OpenAI's protocols; WS /v1/realtime is not in this schema.",
                  lifespan=lifespan, docs_url=None, redoc_url=None,
                  responses={status: {"description": "An error: {error: {message, type, param, code}}"}
                             for status in (400, 401, 403, 404, 408, 413, 421, 429)})
    app.add_middleware(Guard, limits=service.limits, **guard)
    if origins := guard.get("origins"):  # around the Guard: a browser asks first whether it may, without a key
        app.add_middleware(CORSMiddleware, allow_origins=sorted(origins), allow_methods=["*"], allow_headers=["*"])
    app.include_router(completions.make_router(service))
    app.include_router(calls.make_router(service))
    app.include_router(voices.make_router(service))

    def answer_error(status: int, body: dict) -> JSONResponse:
        service.metrics.errors.labels(body["error"]["code"]).inc()
        return JSONResponse(body, status)

    @app.exception_handler(ProtocolError)
    async def protocol_error(request: Request, error: ProtocolError):
        return answer_error(STATUS.get(error.code, 400), error_body(str(error), error.code, error.type, error.param))

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        path = ".".join(str(step) for step in first["loc"][1:])
        return answer_error(400, error_body(f"{path}: {first['msg']}" if path else first["msg"], "invalid_value", param=path or None))

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        return answer_error(error.status_code, error_body(str(error.detail), code))

    @app.get("/v1/models")
    async def models():
        """The one model that is served."""
        return {"object": "list", "data": [{"id": service.model_id, "object": "model", "created": 0, "owned_by": "minimind-o",
                                            "voices": service.voices}]}

    @app.get("/healthz")
    async def healthz():
        """200 while the engine is running, else 503."""
        return JSONResponse({"status": "ok" if service.worker.alive else "down"}, 200 if service.worker.alive else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics():
        """Counters and timings in Prometheus' format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/phone", response_class=FileResponse)
    async def phone():
        """A page that calls the model."""
        return FileResponse(STATIC / "phone.html", headers=PAGE_HEADERS)

    @app.get("/phone.js", response_class=FileResponse, include_in_schema=False)
    async def phone_script():
        return FileResponse(STATIC / "phone.js", media_type="text/javascript", headers=PAGE_HEADERS)

    if with_page:
        from engine.api.page import mount_page

        @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
        async def unknown(path: str):  # the page, mounted at /, would answer it otherwise
            raise HTTPException(404)

        mount_page(app, service)
    return app
