"""A few hundred mutants of a model file; `fuzz` runs as many as one likes."""

from pathlib import Path

import pytest

from tests.service.intake.fuzz import fuzz


@pytest.mark.filterwarnings("ignore")
def test_mutants_are_refused_in_words_or_opened(model_file: Path, tmp_path: Path) -> None:
    outcomes = fuzz(model_file, 300, seed=1, folder=tmp_path)
    assert outcomes["refused"] > 100
    assert not outcomes["refused without a word"]
    assert outcomes["opened"] > 5, "a fuzz that is always refused tries nothing"
