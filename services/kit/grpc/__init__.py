"""gRPC beside HTTP: `serve_grpc` answers it, `kit().grpc(…)` asks it. Loaded by those services alone that speak it."""
