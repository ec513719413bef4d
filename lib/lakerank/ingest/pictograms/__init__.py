"""Emoji art and CLDR names made into two lakes: the bundled demo lake, and a larger one to train on."""
