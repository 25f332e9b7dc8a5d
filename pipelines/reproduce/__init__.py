"""What `cliptune reproduce` is made of: recipes, the commands they stand for, and the verdicts."""
