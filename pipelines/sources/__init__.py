"""One file per data format. Each has one function, `read(source, options) -> Iterator[RawRecord]`."""
