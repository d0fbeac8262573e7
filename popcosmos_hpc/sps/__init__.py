"""Spectra and photometry of stellar populations in pure JAX."""
