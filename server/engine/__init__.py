"""The engine: jobs in, batches through a backend, outcomes out; and what carries jobs between processes."""
