"""Data into draws: one galaxy in, one posterior out."""
