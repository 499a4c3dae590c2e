"""The tiled matrix product: its reference in torch, and what runs it."""
