"""When and where: one command per stage. Stages meet on disk and never import each other."""
