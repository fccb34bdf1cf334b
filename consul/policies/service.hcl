# The token of one service: it registers its own name, the port where it speaks gRPC, and no other, and reads the whole catalog.
service "@NAME@" {
  policy = "write"
}

service "@NAME@-grpc" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

# The edges write here what they made of a registration: its owner may learn why a route was refused.
key_prefix "edge/status/" {
  policy = "read"
}
