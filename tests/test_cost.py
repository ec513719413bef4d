"""Costs estimated from sizes alone, and bins of even cost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lakerank.cost import TEMPLATE_TOKENS, VISUAL_TOKEN_COST, Calibration, Sizing, device_seconds, input_cost, tflop
from lakerank.errors import ConfigError

SIZING = Sizing(min_pixels=3136, max_pixels=602112, max_text_tokens=100)


def cost(text_bytes: int, width: int = 0, height: int = 0) -> int:
    arrays = (np.array([value]) for value in (text_bytes, width, height))
    return int(input_cost(*arrays, SIZING)[0])


def test_text_costs_by_the_byte_up_to_the_limit():
    assert cost(40) - cost(0) == 10
    assert cost(10_000) == cost(400)


def test_an_image_costs_its_visual_tokens_between_the_pixel_limits():
    assert cost(0, 28 * 10, 28 * 4) == TEMPLATE_TOKENS + 40 * VISUAL_TOKEN_COST
    assert cost(0, 4000, 6000) == TEMPLATE_TOKENS + 768 * VISUAL_TOKEN_COST
    assert cost(0, 1, 1) == TEMPLATE_TOKENS + 4 * VISUAL_TOKEN_COST


CALIBRATION = Calibration("cpu", "float32", 9_000_000, 1500.0, 2e8)


def test_a_calibration_is_read_back_as_it_was_written():
    assert Calibration.from_json(CALIBRATION.to_json()) == CALIBRATION


def test_every_fault_of_a_calibration_is_named_with_its_file():
    values = json.loads(CALIBRATION.to_json()) | {"tokens_per_second": 0, "dtype": None}
    del values["device"]
    with pytest.raises(ConfigError) as caught:
        Calibration.from_json(json.dumps(values), source="gpu.json")
    message = str(caught.value)
    for part in ("gpu.json: device: missing", "dtype: expected a name", "tokens_per_second: expected a number above 0"):
        assert part in message
    assert "jobs/benchmark.py --calibration" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN"])
def test_what_is_no_calibration_is_refused(text):
    with pytest.raises(ConfigError, match="calibration: "):
        Calibration.from_json(text)


def test_device_time_goes_by_tokens_and_by_the_number_of_weights():
    assert device_seconds(CALIBRATION, 9_000_000, 3000) == pytest.approx(2.0)
    assert device_seconds(CALIBRATION, 18_000_000, 3000) == pytest.approx(4.0)
    assert tflop(2_000_000_000, 1_000_000) == pytest.approx(4000.0)
