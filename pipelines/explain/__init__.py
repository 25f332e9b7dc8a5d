"""What adapters learned: their words, what each is worth, what moved, and the page about it."""
