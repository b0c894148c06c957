"""The body of a request, as JSON: it refuses what it does not know."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from service.problems import InvalidRequest


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        """
        Raises:
            InvalidRequest: what is wrong, and where.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InvalidRequest.of(error.errors()) from error
