"""Survey tables and stores on the host: NumPy, Arrow and Zarr."""
