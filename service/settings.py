"""The service's settings, from the environment (`MEMFIT_DATA_DIR`, `MEMFIT_PORT`, …)."""

from pathlib import Path

from pydantic import AliasChoices, Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from models import JobQueue
from service.artifacts import Artifacts
from service.limits import limits_for
from service.logs import Format
from service.sandbox import Confinement, Mode, find_sandbox


class Settings(BaseSettings):
    """Where things lie and how much is accepted."""

    model_config = SettingsConfigDict(env_prefix="MEMFIT_", frozen=True, extra="forbid")

    data_dir: Path = Field(default=Path(".memfit"), description="Folder of everything that is kept: database, files, logs.")
    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("database_url", "MEMFIT_DATABASE_URL", "DATABASE_URL"),
        description="A Postgres, for several machines; by default an SQLite file in the data folder.",
    )
    artifacts_url: str | None = Field(
        default=None,
        description="Where machines share files: s3://BUCKET/PREFIX, file:///FOLDER; by default in the data folder.",
    )
    cache_bytes: PositiveInt = Field(default=20 * 2**30, description="Copies of shared files to have on this machine, unless used lately.")
    queue: JobQueue = Field(default=JobQueue.CPU, description="Workers that are to run the jobs made here: those of the queue cpu or gpu.")
    stalled_seconds: PositiveInt = Field(default=30, description="After so long without a sign of life, others take a worker's jobs.")
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
    def shared(self) -> bool:
        """Whether several processes work on one database."""
        return self.url.startswith("postgres")

    @property
    def artifacts(self) -> Artifacts | None:
        """Where processes that share a database share their files; None for one that has both for itself."""
        if not self.shared:
            return None
        from service.objects import Objects  # a program alone does without obstore

        url = self.artifacts_url or (self.data_dir.absolute() / "shared").as_uri()
        return Objects(url, self.data_dir.absolute() / "cache", self.cache_bytes)

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
