"""gRPC gateway: accepts jobs, streams their status, moves blobs."""
