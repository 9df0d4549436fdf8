"""FP8: calibration, scales, and the streams and graphs that they turn into."""
