"""Settings of options come out of a stored profile as they went in: ranks as integers, or the runtime could not slice by them."""

import pytest
from pydantic import TypeAdapter

from planner.profile import Setting

STORED: TypeAdapter[Setting] = TypeAdapter(Setting)


@pytest.mark.parametrize("setting", [True, 3, 0.5, "conv2d", (4, 8, 8), (0.25, 6.0), ("relu", "conv2d")], ids=str)
def test_a_setting_survives_being_stored(setting: Setting) -> None:
    back = STORED.validate_json(STORED.dump_json(setting))
    assert back == setting
    assert type(back) is type(setting)
    if isinstance(setting, tuple) and isinstance(back, tuple):
        assert [type(each) for each in back] == [type(each) for each in setting]
