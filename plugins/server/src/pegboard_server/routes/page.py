"""The chat page and the page of endpoints: files, without a build step and without anything from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
TYPES |= {"svg": "image/svg+xml"}
PAGES = {"/": "chat.html", "/docs": "docs.html", "/page/chat.css": "chat.css", "/page/chat.js": "chat.js"}
PAGES |= {"/page/docs.js": "docs.js", "/page/icon.svg": "icon.svg"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)
HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def content(name: str) -> bytes:
    """Return a file of the folder `page`."""
    return (files("pegboard_server") / "page" / name).read_bytes()


def _add(path: str, name: str) -> None:
    @router.api_route(path, methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(content(name), media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)


for path, name in PAGES.items():
    _add(path, name)
