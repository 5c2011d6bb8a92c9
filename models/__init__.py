"""Networks, the zoo that binds them to weights and preprocessing, and the manifest of an exported model."""
