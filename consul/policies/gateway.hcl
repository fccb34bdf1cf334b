# The token of one group of gateways: it registers its own name and no other, and finds everybody.
service "@NAME@" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
