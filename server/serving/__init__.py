"""The serving core, which all transports share: it plans requests, has models answer them, and counts them."""
