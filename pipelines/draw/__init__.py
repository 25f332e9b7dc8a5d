"""The work behind `cliptune draw`: labelled shards in, one classification task out."""
