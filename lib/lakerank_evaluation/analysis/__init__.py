"""What the metrics and scores say: slices, modality gap, labels, calibration, published figures."""
