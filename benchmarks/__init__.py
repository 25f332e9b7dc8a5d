"""How many times less CPU the engine takes than the plain transformers, PEFT and PIL way."""
