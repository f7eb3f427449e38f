"""Three published claims, tried at a small scale."""
