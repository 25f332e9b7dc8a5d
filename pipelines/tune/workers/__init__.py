"""Where trials train: how a cluster is divided, groups of workers, and how they are stopped."""
