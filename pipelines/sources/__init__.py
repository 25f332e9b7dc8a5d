"""One file per data format, each with one function: `read(source, options)` to `RawRecord`s."""
