"""Damage to bytes and to JSON values, by a random generator: a seed makes the same input again."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

#: What a value may be changed to.
EVIL: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**63, 10**6, 10**12, 10**400, 1.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "x", "1", "\0", "../x", "/etc/hostname", "(a+)+$", "((((", "\ud800", "a" * 10**5),
    *([], {}, [1], [None], [[]], {"a": 1}, {"": None}, [[[[[[]]]]]]),
)
_NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\1\0\0\0",
    b"\0\0\0\1",
    b"\x80",
)


def damaged(random: Random, data: bytes, times: int | None = None) -> bytes:
    """Bytes with bits flipped, numbers put in, pieces cut out, doubled or moved, or an end torn off."""
    result = bytearray(data)
    for _ in range(times or random.choice((1, 1, 2, 4, 16))):
        place, size = random.randrange(len(result) + 1), random.choice((1, 2, 4, 8, 64, 1024))
        match random.randrange(7):
            case 0 | 1 if result:
                result[place - 1] ^= 1 << random.randrange(8)
            case 2:
                number = random.choice(_NUMBERS)
                result[place : place + len(number)] = number
            case 3:
                del result[place : place + size]
            case 4:
                result[place:place] = result[place : place + size]
            case 5:
                result[place : place + size] = random.randbytes(size)
            case _:
                if random.random() < 0.3:
                    del result[place:]
    return bytes(result)


def changed(random: Random, value: Any, times: int | None = None) -> Any:
    """A JSON value of which some parts are other ones, are gone, or stand under another name."""
    value = copy.deepcopy(value)
    for _ in range(times or random.choice((1, 1, 1, 2, 3))):
        value = _changed_once(random, value)
    return value


def _changed_once(random: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.05:
        return _other(random, value)
    key = random.choice(list(value)[:60]) if isinstance(value, dict) else random.randrange(len(value))
    if isinstance(value[key], dict | list) and random.random() < 0.7:
        value[key] = _changed_once(random, value[key])
    elif random.random() < 0.15:
        del value[key]
    elif isinstance(value, dict) and random.random() < 0.2:
        value[random.choice((f"{key}_", str(key).upper(), *list(value)[:3]))] = value.pop(key)
    else:
        value[key] = _other(random, value[key])
    return value


def _other(random: Random, value: Any) -> Any:
    if type(value) in (int, float) and random.random() < 0.5:
        return random.choice((value + 1, value - 1, value * 2, -value, str(value), [value]))
    return copy.deepcopy(random.choice(EVIL))
