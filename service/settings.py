"""The service's settings, from the environment (`MEMFIT_DATA_DIR`, `MEMFIT_PORT`, …)."""

from pathlib import Path

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where things lie and how much is accepted."""

    model_config = SettingsConfigDict(env_prefix="MEMFIT_", frozen=True, extra="forbid")

    data_dir: Path = Field(default=Path(".memfit"), description="Folder of everything that is kept: database, files, logs.")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; by default an SQLite file in the data folder.")
    max_upload_bytes: PositiveInt = Field(default=8 * 2**30, description="Largest file taken in.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: PositiveInt = Field(default=1, description="Jobs that run at a time. Measured seconds are only comparable with one.")

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'memfit.db'}"
