# The gateways: they call services, and register nothing with this token.
service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
