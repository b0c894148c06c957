"""Database records, one table a file. Importing the package registers every table on `Record.metadata`."""

from models.base import Record
from models.device_record import DeviceRecord
from models.job_record import JobKind, JobQueue, JobRecord, JobState
from models.key_record import HoldingRecord, KeyRecord
from models.model_record import ModelRecord
from models.plan_record import PlanRecord, PlanState
from models.profile_record import ProfileRecord, ProfileState
from models.reply_record import ReplyRecord
from models.sample_record import SampleRecord
from models.upload_record import UploadRecord

__all__ = [
    "DeviceRecord",
    "HoldingRecord",
    "JobKind",
    "JobQueue",
    "JobRecord",
    "JobState",
    "KeyRecord",
    "ModelRecord",
    "PlanRecord",
    "PlanState",
    "ProfileRecord",
    "ProfileState",
    "Record",
    "ReplyRecord",
    "SampleRecord",
    "UploadRecord",
]
