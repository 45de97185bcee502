"""Writes the OpenAPI document of all faces to `docs/openapi.json`, for `script/record-openapi`. Needs no database."""

# ruff: noqa: INP001, T201 - a program beside the package that talks to people
import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings

FILE = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"


def main() -> None:
    """Record it, and say whether that changed anything."""
    app = create_app(
        Settings.model_construct(), "postgresql://nowhere", []
    )  # the defaults, whatever the environment says
    text = json.dumps(app.openapi(), ensure_ascii=False, indent=1) + "\n"
    before = FILE.read_text() if FILE.exists() else ""
    FILE.write_text(text)
    print("docs/openapi.json is as it was" if text == before else "docs/openapi.json has changed: read the difference")


if __name__ == "__main__":
    main()
