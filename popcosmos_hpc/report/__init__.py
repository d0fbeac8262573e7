"""Judges of results: survey check, calibration, photo-z, population, throughput, on one HTML page."""
