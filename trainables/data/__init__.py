"""Records on disk and in memory: shards, a store's files, batches."""
