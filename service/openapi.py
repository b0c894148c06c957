"""Writes the description of the calls: `python -m service.openapi docs/openapi.json`. A test holds the committed one to the code."""

import json
import sys
from pathlib import Path

from service.app import create_app
from service.settings import Settings


def description() -> str:
    """The description as JSON, without what changes by itself."""
    content = create_app(Settings()).openapi()
    content["info"].pop("version")
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(description())
