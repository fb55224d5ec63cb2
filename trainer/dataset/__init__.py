"""Pictures and captions: finding them, sizing them, ordering them, encoding them once."""
