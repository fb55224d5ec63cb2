"""LoRA files: reading and writing them in every form that the field knows, and what can be done with a finished one."""
