"""What a run keeps in the memory of its device and of the machine, and how it does with less."""
