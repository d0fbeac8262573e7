"""Plans of blocks run on executors; the only room that knows Dask."""
