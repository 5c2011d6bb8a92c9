"""What a machine with an NVIDIA GPU is to show, part by part: `docs/measurements/gpu.sh` says how."""
