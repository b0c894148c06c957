"""The service's settings, from the environment (`MEMFIT_DATA_DIR`, `MEMFIT_PORT`, …)."""

from pathlib import Path

from pydantic import AliasChoices, Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.limits import limits_for
from service.logs import Format
from service.sandbox import Confinement, Mode, find_sandbox


class Settings(BaseSettings):
    """Where things lie and how much is accepted."""

    model_config = SettingsConfigDict(env_prefix="MEMFIT_", frozen=True, extra="forbid")

    data_dir: Path = Field(default=Path(".memfit"), description="Folder of everything that is kept: database, files, logs.")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; by default an SQLite file in the data folder.")
    max_upload_bytes: PositiveInt = Field(default=8 * 2**30, description="Largest file taken in.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: PositiveInt = Field(default=1, description="Jobs that run at a time. Measured seconds are only comparable with one.")

    stage_memory_bytes: PositiveInt | None = Field(
        default=None, description="Most memory of a stage's process; by default nine tenths of all."
    )
    stage_seconds: PositiveInt = Field(default=3600, description="Longest that a stage of a job may run.")
    sandbox: Mode = Field(
        default="auto",
        validation_alias=AliasChoices("sandbox", "MEMFIT_SANDBOX", "SANDBOX"),
        description="require: stages run in bubblewrap, or the service does not start; auto: in the best there is; off: in none.",
    )

    log_format: Format = Field(default="text", description="text: lines for people; json: objects with the ids of request and job.")

    @property
    def url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'memfit.db'}"

    @property
    def confinement(self) -> Confinement:
        """What a stage may take, and where it runs. A checkpoint is a model with its plan: twice the largest upload holds any.

        Raises:
            NoSandbox: one is required, and there is none.
        """
        return Confinement(limits_for(self.stage_memory_bytes, self.stage_seconds, 2 * self.max_upload_bytes), find_sandbox(self.sandbox))
