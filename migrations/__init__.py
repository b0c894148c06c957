"""Alembic migrations: one change a file in `versions`, up and down."""
