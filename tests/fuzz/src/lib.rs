//! Fuzz targets, in `bin`. They are built with coverage instrumentation by `run`, beside this file's folder.
