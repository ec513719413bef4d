"""Addresses as spark-submit and the jobs see them."""

from __future__ import annotations


def below(home: str, name: str) -> str:
    """A URI or an absolute path as it is; any other path below `home`."""
    return name if "://" in name or name.startswith("/") else f"{home.rstrip('/')}/{name}"
