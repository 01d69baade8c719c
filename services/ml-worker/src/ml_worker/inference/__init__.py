"""The Open Inference Protocol, version 2, over gRPC: models for callers who bring tensors."""
