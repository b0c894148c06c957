"""Where the files of models and samples lie that may be opened, and how models of an older service get theirs."""

import logging
from pathlib import Path
from uuid import uuid4

from sqlalchemy import select

from models import ModelRecord, SampleRecord
from planner.errors import BadModel
from service.database import Database
from service.problems import NotFound
from service.sandbox import Confinement
from service.stage_process import Cancellation, StageProblem, Stages
from service.store import Store, finished_digest

logger = logging.getLogger(__name__)


def program_path(store: Store, record: ModelRecord) -> Path:
    """The model's program, written anew when it came.

    Raises:
        NotFound: it came to an older service, and was refused by this one.
    """
    if record.content_digest is None:
        raise NotFound("model", record.digest, "It was kept by an older memfit, and this one refuses it. Export and upload it again.")
    return store.path("programs", record.content_digest)


def sample_path(store: Store, record: SampleRecord) -> Path:
    """The sample, as safetensors."""
    return store.path("samples", record.content_digest or record.digest)


def rewrite_older_models(database: Database, store: Store, confinement: Confinement) -> None:
    """Write models anew that were kept as they came, by memfit 0.1. Those that are refused stay unused, and are named in the log."""
    with database.reading() as session:
        older = session.scalars(select(ModelRecord.digest).where(ModelRecord.content_digest.is_(None))).all()
    for digest in older:
        upload = store.path("models", digest)
        try:
            with store.workspace() as folder:
                stages = Stages(folder, store.log(f"upgrade-{uuid4()}"), Cancellation(), confinement)
                stages.inspect(upload, program := folder / "program.pt2")
                content = finished_digest(program)
                store.keep("programs", program, content)
        except (BadModel, StageProblem) as error:
            logger.warning("model %s, kept by an older memfit, is refused: %s", digest, error)
            continue
        with database.transaction() as session:
            session.get_one(ModelRecord, digest).content_digest = content
        upload.unlink()
