"""Files of many kinds in, lake tables out."""
