"""Compressed bytes in, the network's uint8 pixels out."""
