# The token of one group of gateways: it registers its own name and no other, and reads the whole catalog.
service "@NAME@" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
