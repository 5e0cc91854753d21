"""What can be asked."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import JobsRead
from api.documentation import PROBLEMS, example_request
from api.schemas.admin import KindInfo, KindList
from pipelines.kinds import registry

router = APIRouter(prefix="/v1/kinds", tags=["kinds"], responses=PROBLEMS)


@router.get("", operation_id="listKinds", summary="List the job kinds")
async def list_kinds(caller: JobsRead) -> KindList:
    """Each with the media it reads, the JSON schema of its parameters, and worked examples."""
    del caller
    return KindList(
        data=[
            KindInfo(
                name=kind.name,
                title=kind.title,
                media=sorted(medium.value for medium in kind.media),
                many_media=kind.many_media,
                parameters=kind.Parameters.model_json_schema(),
                examples=[
                    {"title": example.title, "request": example_request(kind, example)} for example in kind.examples
                ],
            )
            for kind in registry.all_kinds()
        ]
    )
