"""The files that browsers are given: the playground at `/`, the interface told at `/docs`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

PLAYGROUND = Path(__file__).parents[1] / "playground"
DOCS = Path(__file__).parent / "docs"
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")  # FastAPI's own page loads them from a CDN


def add_pages(app: FastAPI) -> None:
    """Adds a route for each file; a folder mounted at `/` would answer 404 in place of 405."""
    add_folder(app, PLAYGROUND, "/")
    add_folder(app, DOCS, "/docs")
    swagger = Path(str(files("fastapi_offline"))) / "static"
    for name in SWAGGER:
        add_file(app, swagger, name, f"/docs/{name}")


def add_folder(app: FastAPI, folder: Path, at: str) -> None:
    """Adds all files of a folder; `index.html` is what the folder itself answers."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            add_file(app, folder, name, at if name == "index.html" else f"{at.rstrip('/')}/{name}")


def add_file(app: FastAPI, folder: Path, name: str, at: str) -> None:
    """Adds one file."""
    static = StaticFiles(directory=folder)

    async def answer(request: Request) -> Response:
        return await static.get_response(name, request.scope)

    app.router.routes.append(Route(at, answer, methods=["GET"]))
