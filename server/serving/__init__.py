"""The serving core under all transports: what a request is, who answers it, and the one place that counts it."""
