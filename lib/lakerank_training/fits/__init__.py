"""Thresholds of labels and scales of logits that fit judgements best, for `lakerank evaluate`."""
