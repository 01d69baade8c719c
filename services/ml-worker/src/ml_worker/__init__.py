"""Model worker: ONNX Runtime on certified pixels."""
