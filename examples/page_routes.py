"""Serves the page of an example beside the API, as a plug-in of the group ``recsys.routes``."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from serving.access.scopes import PUBLIC
from serving.http.added_routes import AddedRoutes

SHARED: Final = Path(__file__).with_name("page")  # files that all pages use


def add_page(added: AddedRoutes, name: str, folder: Path) -> None:
    """Adds ``/NAME/`` with the files of a folder, and those that all pages share."""
    files = {file.name: file for source in (SHARED, folder) for file in source.iterdir()}
    router = APIRouter(include_in_schema=False)

    @router.get(f"/{name}/")
    async def index() -> FileResponse:
        return FileResponse(files["index.html"])

    @router.get(f"/{name}/{{file}}")
    async def part(file: str) -> FileResponse:
        if file not in files:
            raise HTTPException(404, f"the page {name} has no file {file[:80]!r}")
        return FileResponse(files[file])

    added.router.include_router(router)
    added.scopes.append((rf"GET /{name}/[\w.]*$", PUBLIC))
    added.others.append(f"/{name}/")
