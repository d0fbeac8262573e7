"""The statistical model of one galaxy in pure JAX."""
