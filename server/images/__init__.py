"""Turns compressed images into the network's uint8 pixels."""
