"""Frozen values as JSON, for records, files and messages: one adapter a type, to read and to write."""

from pydantic import TypeAdapter

from planner.plan import Certificate, Plan, Proof
from planner.profile import Profile
from planner.request import PlanRequest
from service.problems import ProblemDocument
from service.summary import ModelSummary, SampleSummary

MODEL_SUMMARY = TypeAdapter(ModelSummary)
SAMPLE_SUMMARY = TypeAdapter(SampleSummary)
PROFILE = TypeAdapter(Profile)
PLAN_REQUEST = TypeAdapter(PlanRequest)
PLAN = TypeAdapter(Plan)
PROOF = TypeAdapter(Proof)
CERTIFICATE = TypeAdapter(Certificate)
PROBLEM = TypeAdapter(ProblemDocument)
