"""What a request may say, as `/openapi.json` tells it.

Flows in: JSON. Flows out: values whose lengths are bounded and that are nowhere deep.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from pipelines.use.model import ZERO_SHOT

Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Top = Annotated[int, Field(ge=1, le=1_000)]
Name = Annotated[str, Field(max_length=255)]
Named = Annotated[Name, Query(description="The adapter, by its name in `/v1/adapters`.")]
MOST = 1_000  # values of a field in a filter


def _flat(where: dict[str, Any]) -> dict[str, Any]:
    for wanted in where.values():
        inside = [*wanted.values()] if isinstance(wanted, dict) else wanted
        if isinstance(inside, list) and (
            len(inside) > MOST or any(isinstance(one, dict | list) for one in inside)
        ):
            raise ValueError(f"a field has a value, a list of at most {MOST}, or from and to")
    return where


Where = Annotated[dict[Name, Any], AfterValidator(_flat)]
WHERE: TypeAdapter[dict[str, Any]] = TypeAdapter(Where)


class Body(BaseModel):
    """A request's JSON, in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Texts(Body):
    adapter: Name = ZERO_SHOT
    texts: Annotated[list[Text], Field(min_length=1, max_length=256)]


class Search(Body):
    adapter: Name = ZERO_SHOT
    text: Text | None = None
    image: Text | None = Field(None, description="Instead of a text, the name of an image here.")
    top: Top = 12
    where: Where = Field(
        default_factory=dict,
        description="Only images with these fields: a value, a list of them, or from and to.",
    )


class Token(Body):
    token: str


class Failure(BaseModel):
    error: str = Field(description="Why, in a sentence.")
